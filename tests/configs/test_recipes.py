"""The full-scale recipes of the flow room on the meta device: networks and steps of real size, no values.

What a recipe says is compared with what its source says, which is restated here: parameter counts, batches,
lengths, the networks in the published files.
"""

import copy
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from bundled import FOLDER
from bundled import OVERLAYS as ALL_OVERLAYS
from bundled import RECIPES as ALL_RECIPES
from torch import Tensor, nn

from zoo._cli.check import CheckCLI
from zoo._cli.noise import MACHINE, quiet
from zoo._cli.policy import import_policy
from zoo._cli.trainer_cli import build
from zoo.flow import (
    CMT,
    EDM2UNet,
    EDMPreconditioning,
    MeanFlow,
    PreconditionedNetwork,
    SongUNet,
    Teacher,
    TrajectoryDraws,
)

RECIPES = [name for name in ALL_RECIPES if name.startswith("flow/")]
OVERLAYS = [name for name in ALL_OVERLAYS if name.startswith("flow/")]
# Trainable parameters. EDM2's sizes are given in millions by its paper.
PARAMETERS: dict[str, float] = {
    "flow/cifar10/pretrain": 55_733_891,
    "flow/cifar10/cmt": 55_733_891,
    "flow/cifar10/ect": 55_733_891,
    "flow/cifar10/mean_flow": 55_932_419 - 6 * 512,  # without the augmentation's layer
    "flow/ffhq64/cmt": 61_805_571,
    "flow/ffhq64/ect": 61_805_571,
    "flow/afhqv2_64/cmt": 61_805_571,
    "flow/afhqv2_64/ect": 61_805_571,
    "flow/imagenet64/cmt": 280.2e6,
    "flow/imagenet64/ect": 280.2e6,
    "flow/imagenet256/mean_flow_b4": 131_165_248,
    "flow/imagenet256/cmt": 676_440_592,
    "flow/imagenet256/mean_flow": 676_440_592,
    "flow/imagenet256/mean_flow_from_cmt": 676_440_592,
    "flow/imagenet512/cmt": 1523.2e6,
    "flow/imagenet512/ecd": 1523.2e6,
}
# Items per update (of CMT: trajectories), updates, learning rate, decay of the average.
SCALE = {
    "flow/cifar10/pretrain": (512, 200_000_000 // 512, 1e-3, 0.5 ** (512 / 500_000)),
    "flow/cifar10/cmt": (128 // 16, 38_400_000 // 128, 2e-4, 0.999),
    "flow/cifar10/ect": (128, 12_800_000 // 128, 1e-4, 0.9999),
    "flow/cifar10/mean_flow": (1024, 16_000 * (50_000 // 1024), 6e-4, 0.9999),
    "flow/ffhq64/cmt": (128 // 16, 38_400_000 // 128, 2e-4, 0.999),
    "flow/ffhq64/ect": (128, 12_800_000 // 128, 1e-4, 0.9999),
    "flow/afhqv2_64/cmt": (128 // 16, 38_400_000 // 128, 2e-4, 0.999),
    "flow/afhqv2_64/ect": (128, 12_800_000 // 128, 1e-4, 0.9999),
    "flow/imagenet64/cmt": (128 // 16, 12_800_000 // 128, 2e-4, 0.999),
    "flow/imagenet64/ect": (128, 12_800_000 // 128, 1e-3, 0.9999),
    "flow/imagenet256/mean_flow_b4": (256, 80 * (1_281_167 // 256), 1e-4, 0.9999),
    "flow/imagenet256/cmt": (8, 100_000, 1e-4, 0.999),
    "flow/imagenet256/mean_flow": (256, 240 * (1_281_167 // 256), 1e-4, 0.9999),
    "flow/imagenet256/mean_flow_from_cmt": (256, 93 * (1_281_167 // 256), 1e-4, 0.9999),
    "flow/imagenet512/cmt": (128 // 16, 12_800_000 // 128, 2e-4, 0.999),
    "flow/imagenet512/ecd": (128, (28_800_000 - 12_800_000) // 128, 1e-6, 0.9999),
}
# The networks in the published files.
SONG = partial(SongUNet, augment_dim=9, two_times=False)
PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "edm-cifar10-32x32-uncond-vp": SONG,
    "edm-ffhq-64x64-uncond-vp": partial(SONG, 64, width_multipliers=[1, 2, 2, 2]),
    "edm-afhqv2-64x64-uncond-vp": partial(SONG, 64, width_multipliers=[1, 2, 2, 2]),
    "edm2-img64-s-1073741-0.075": partial(EDM2UNet, in_channels=3, width=192, two_times=False),
    "edm2-img512-xxl-0939524-0.070": partial(EDM2UNet, in_channels=4, width=448, two_times=False),
    "edm2-img512-xxl-0939524-0.075": partial(EDM2UNet, in_channels=4, width=448, two_times=False),
    "edm2-img512-m-0268435-0.155": partial(EDM2UNet, in_channels=4, width=256, two_times=False),
}
# What each overlay changes in the recipes it is made for.
CHANGES = {
    "flow/strict_official/cmt": {
        "trajectories.start": "data",
        "label_dropout": 0.0,
        "sampler.boundary": 0.003,
    },
    "flow/strict_official/ect": {"sampler.boundary": 0.003},
    "flow/strict_official/mean_flow": {"times.init_args.fixed_count": True},
}
MERGES = [
    *((f"flow/{data}/{stage}", f"flow/strict_official/{stage}")
      for stage in ("cmt", "ect") for data in ("cifar10", "ffhq64", "afhqv2_64")),
    *((f"flow/imagenet256/{name}", "flow/strict_official/mean_flow")
      for name in ("mean_flow_b4", "mean_flow", "mean_flow_from_cmt")),
]  # fmt: skip


class RecipeCLI(CheckCLI):
    """`zoo check`, but for the data, whose files are not here."""

    data: Any = None

    def instantiate_classes(self) -> None:
        self.data = self.config.fit.pop("data")
        super().instantiate_classes()

    def prepare(self) -> None:
        pass


@cache
def recipe(*names: str) -> RecipeCLI:
    """A recipe, maybe with an overlay, whose model holds no values."""
    words = ["fit", *(word for name in names for word in ("--config", name))]
    with import_policy([]), quiet(MACHINE):
        return build(partial(RecipeCLI, words), words)


def settings(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@cache
def network_in(source: str) -> nn.Module:
    """The network of a file that ``zoo convert`` makes, or of the run of another recipe, without values."""
    if source.startswith("runs/"):
        return recipe(source.removeprefix("runs/")).model.network
    name = re.fullmatch(r"teachers/(.+)\.safetensors", source)
    assert name is not None
    with torch.device("meta"):
        return PUBLISHED[name[1]]()


def read(teacher: Teacher) -> None:
    """Gives a teacher what it would read from its file."""
    if teacher.guide is not None:
        read(teacher.guide)
    assert teacher.checkpoint is not None
    meaning = EDMPreconditioning(0.5)
    if teacher.checkpoint.startswith("runs/"):
        meaning = recipe(teacher.checkpoint.removeprefix("runs/")).model.preconditioning
    network = copy.deepcopy(network_in(teacher.checkpoint))  # a teacher freezes its own
    teacher._set_field(PreconditionedNetwork(network, meaning, teacher.path))


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def step(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Tensor]:
    """The loss of one training step and its gradients, without values."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # unknown on this device
    module = recipe(name).model
    if module.teacher is not None:
        read(module.teacher)
        module.teacher.check_student(module.shape, module.num_classes)
    module._frozen.to(torch.device("meta"))
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(global_step=3, world_size=1, global_rank=0))
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    count = 8  # also in CMT, whose full-scale batches are of 8 trajectories
    batch = {"index": torch.arange(count)}
    if module.needs_data:
        batch["x"] = torch.empty(count, *module.shape, device="meta")
    if module.num_classes is not None:
        batch["label"] = torch.empty(count, dtype=torch.long, device="meta")
    module.train()
    loss = module._loss(batch, 0, "train", 3)
    loss.backward()
    return module, loss


def test_every_recipe_is_in_the_tables() -> None:
    assert set(RECIPES) == PARAMETERS.keys() == SCALE.keys()
    assert set(OVERLAYS) == CHANGES.keys() == {overlay for _, overlay in MERGES}


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_is_the_published_one(name: str) -> None:
    count = sum(p.numel() for p in recipe(name).model.network.parameters() if p.requires_grad)
    # In millions with one decimal, where the source gives no more.
    assert count == pytest.approx(PARAMETERS[name], abs=0.05e6 if "512" in name or "net64" in name else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_at_full_scale(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, labels, teacher, distance, loss, gradients, optimizer and schedule fit each other."""
    module, loss = step(name, monkeypatch)
    parameters = [p for p in module.parameters() if p.requires_grad]
    assert loss.is_meta and loss.shape == () and all(p.grad is not None for p in parameters)
    built = module.configure_optimizers()
    scheduled = isinstance(built, dict)
    optimizer = built["optimizer"] if scheduled else built
    # AdamW, the default, would leave its weight decay to an optimizer of another class.
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    optimizer.step()
    if scheduled:
        assert built["lr_scheduler"]["interval"] == "step"
        built["lr_scheduler"]["scheduler"].step()
    module.zero_grad()


@pytest.mark.parametrize("name", RECIPES)
def test_scale_is_that_of_the_source(name: str) -> None:
    trainer, model = settings(name)["trainer"], settings(name)["model"]["init_args"]
    batch, steps, rate, decay = SCALE[name]
    assert trainer["devices"] * settings(name)["data"]["init_args"]["batch_size"] == batch
    assert trainer["max_steps"] == steps
    assert model["optimizer"]["init_args"]["lr"] == rate
    callbacks = {entry["class_path"]: entry.get("init_args", {}) for entry in trainer["callbacks"]}
    assert callbacks["EMAWeightAveraging"]["decay"] == pytest.approx(decay, abs=1e-6)
    # The last update is saved, for the next stage to start from.
    assert steps % callbacks["ModelCheckpoint"]["every_n_train_steps"] == 0
    schedule = model.get("lr_scheduler", {"init_args": {}})["init_args"]
    if schedule.get("end_factor") == 0:
        assert schedule["total_iters"] == steps


@pytest.mark.parametrize("name", RECIPES)
def test_data_have_the_shape_of_the_network(name: str) -> None:
    data, network = settings(name)["data"], recipe(name).model.network
    arguments = data["init_args"]
    match data["class_path"]:
        case "CIFAR10":
            shape, classes = (3, 32, 32), True
        case "ImageFolder":
            shape, classes = (3, arguments["size"], arguments["size"]), arguments.get("classes", True)
        case "Latents":
            shape, classes = (4, *network.shape[1:]), True
            assert arguments["moments"] == "std"
            assert len(arguments.get("mean", [0] * 4)) == len(arguments.get("std", [0] * 4)) == 4
    assert tuple(network.shape) == shape
    assert classes or network.num_classes is None
    assert all(str(arguments[key]).startswith("data/") for key in ("root", "path") if key in arguments)


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if "init_from" in settings(name)["model"]["init_args"]]
)
def test_initial_weights_fit(name: str) -> None:
    """The published file, or the run before, holds the tensors of this network, with the same meaning."""
    model, source = recipe(name).model, settings(name)["model"]["init_args"]["init_from"]
    assert shapes(network_in(source)) == shapes(model.network)
    if source.startswith("runs/"):
        before = recipe(source.removeprefix("runs/")).model
        assert before.preconditioning.describe() == model.preconditioning.describe()
    else:
        assert model.preconditioning.describe() == EDMPreconditioning(0.5).describe()


@pytest.mark.parametrize("name", RECIPES)
def test_files_to_convert_are_said(name: str) -> None:
    """Whoever has no teacher reads which file to get, and what to type."""
    text = (FOLDER / f"{name}.yaml").read_text()
    for file in set(re.findall(r": (teachers/\S+)\.safetensors", text)):
        published = file.removeprefix("teachers/")
        assert f"#   zoo convert {published}.pkl {file}.safetensors\n" in text
        assert "https://nvlabs-fi-cdn.nvidia.com/edm" in text
    assert ("weights/vgg16-397923af.pth" in text) == ("https://download.pytorch.org/models/vgg16" in text)


def test_teachers_are_those_of_the_papers() -> None:
    """16 steps of DPM-Solver++ of order 3; 8 steps of a mean flow; guidance by a weaker network."""
    cifar, latents = recipe("flow/cifar10/cmt").model, recipe("flow/imagenet256/cmt").model
    distilled = recipe("flow/imagenet512/ecd").model
    for module in (cifar, latents, distilled):
        read(module.teacher)
    times = cifar.teacher.times()
    assert len(times) == 17 and times[7].item() == pytest.approx(0.77569, abs=1e-5)  # their mid_t
    assert cifar.teacher.solver.order == 3 and cifar.sampler.levels == [80.0, 0.77569]
    assert latents.teacher.times().tolist() == [k / 8 for k in range(8, -1, -1)]
    guided = distilled.teacher.field
    assert guided.omega == 2.05 and guided.guide.network.emb_noise.weight.shape == (4 * 256, 256)


def test_levels_of_consistency_tuning() -> None:
    """The share s' / s of ECT's recipes, at s = .01, 1 and 80: no clip cuts a large q off."""
    expected = {
        ("flow/cifar10/ect", 0): [0.998784, 0.999231, 0.999756],  # q = 4096
        ("flow/imagenet64/ect", 99_999): [0.980547, 0.987689, 0.996094],  # q = 4^4 in the last stage
    }
    for (name, progress), ratios in expected.items():
        levels = recipe(name).model.objective.levels
        found = levels.ratio(torch.tensor([0.01, 1.0, 80.0], dtype=torch.float64), progress)
        assert found.tolist() == pytest.approx(ratios, abs=1e-6)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: item for k, v in value.items() for key, item in flat(v, f"{name}.{k}").items()}


@pytest.mark.parametrize(("name", "overlay"), MERGES)
def test_an_overlay_changes_what_it_says(name: str, overlay: str) -> None:
    """Over its recipes, whose numbers are the sources' already, an overlay changes a few settings."""
    plain, merged = (flat(cli.config.fit.model.as_dict()) for cli in (recipe(name), recipe(name, overlay)))
    prefix = ".init_args."
    changed = {key.removeprefix(prefix): value for key, value in merged.items() if plain.get(key) != value}
    expected = {key: value for key, value in CHANGES[overlay].items() if plain.get(prefix + key) != value}
    assert plain.keys() == merged.keys() and changed == expected != {}


def test_overlays_say_all_of_it_over_small_configs() -> None:
    """Over configs with other numbers an overlay brings its own."""
    cmt = recipe("flow/digits_cmt_consistency", "flow/strict_official/cmt").model
    assert isinstance(cmt, CMT) and cmt.trajectories == TrajectoryDraws("data", None)
    assert cmt.teacher is not None and cmt.teacher.solver.order == 3  # type: ignore[attr-defined]
    ect = recipe("flow/digits_consistency", "flow/strict_official/ect").model
    assert ect.objective.levels.max_ratio == 1.0 and ect.objective.levels.q == 16
    assert ect.sampler.boundary == 0.003 and ect.preconditioning.boundary == 0.0
    flow = recipe("flow/digits_mean_flow", "flow/strict_official/mean_flow").model
    assert isinstance(flow, MeanFlow) and flow.times.fixed_count and flow.times.prob_r_neq_t == 0.25
