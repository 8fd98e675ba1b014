"""Between two stages the function stays what it was, or the run is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.flow import (
    CMT,
    MLP,
    ConsistencyModel,
    Diffusion,
    DiT,
    EDMPreconditioning,
    LinearPath,
    MeanFlow,
    PreconditionedNetwork,
    Teacher,
    TrajectoryDraws,
    VarianceExplodingPath,
    VelocityPrediction,
    hand_over,
)
from zoo.flow.handover import check_second_time_is_zero_initialized
from zoo.flow.preconditioning import Preconditioning

SMALL: dict[str, dict[str, Any]] = {
    "DiT": {
        "input_size": 8, "in_channels": 2, "patch_size": 4, "width": 16, "depth": 2, "heads": 2,
        "num_classes": 3,
    },
    "MLP": {"dim": 3, "width": 16, "depth": 2, "num_classes": 3},
}  # fmt: skip
CLASSES: dict[str, Any] = {"DiT": DiT, "MLP": MLP}


def build(kind: str, two_times: bool, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    network = CLASSES[kind](**SMALL[kind], two_times=two_times)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.to(dtype)


def inputs(network: Any, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(6, *network.shape, dtype=dtype, generator=generator)
    t = torch.linspace(0.01, 80 / 81, 6, dtype=dtype)
    h = t * torch.rand(6, dtype=dtype, generator=generator)
    return z, t, h, torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("preconditioning", [VelocityPrediction(), EDMPreconditioning(0.5)], ids=repr)
class TestOneClockToTwo:
    def test_the_student_is_the_teacher_at_every_h(self, kind: str, preconditioning: Preconditioning) -> None:
        """On the same time input, in every bit."""
        teacher, student = build(kind, False), build(kind, True, seed=5)
        said = hand_over(student, teacher.state_dict())
        assert "zero-initialized" in said
        z, t, h, label = inputs(teacher)
        expected = PreconditionedNetwork(teacher, preconditioning, LinearPath()).velocity(z, t, label)
        model = PreconditionedNetwork(student, preconditioning, LinearPath())
        for step in (h, torch.zeros_like(h), t):
            assert model.mean_velocity(z, t, step, label).equal(expected)

    def test_and_learns_its_second_time_from_the_first_update(
        self, kind: str, preconditioning: Preconditioning
    ) -> None:
        student = build(kind, True)
        hand_over(student, build(kind, False).state_dict())
        z, t, h, label = inputs(student)
        PreconditionedNetwork(student, preconditioning, LinearPath())(
            z, t, h, label
        ).square().sum().backward()
        gradients = [p.grad for name, p in student.named_parameters() if name.startswith("h_embedder")]
        assert any(g is not None and g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("kind", SMALL)
def test_across_the_bridge_from_edm_to_the_linear_path(kind: str) -> None:
    """v(z, t) = (z - D(z / (1 - t), t / (1 - t))) / t: 1e-10 in float64, 1e-5 / t in float32."""
    teacher = build(kind, False)
    edm = PreconditionedNetwork(teacher, EDMPreconditioning(0.5), VarianceExplodingPath())
    student = build(kind, True, seed=5)
    hand_over(student, teacher.state_dict())
    z, t, h, label = inputs(teacher)
    wide = t.reshape(-1, *[1] * (z.ndim - 1))
    expected = (z - edm.denoise(z / (1 - wide), t / (1 - t), label)) / wide
    found = PreconditionedNetwork(student, EDMPreconditioning(0.5), LinearPath())(z, t, h, label)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    rounded = PreconditionedNetwork(student.float(), EDMPreconditioning(0.5), LinearPath())(
        z.float(), t.float(), h.float(), label
    )
    error = (rounded - expected).abs().flatten(1).amax(1)
    # Relative to outputs of a few units, which random weights give.
    assert bool((error < 1e-5 * expected.abs().max() / t).all())


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("two_times", [False, True])
def test_equal_networks_take_all_weights(kind: str, two_times: bool) -> None:
    source, target = build(kind, two_times), build(kind, two_times, seed=5)
    assert hand_over(target, source.state_dict()).startswith("all ")
    assert all(value.equal(target.state_dict()[name]) for name, value in source.state_dict().items())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"with one time input: 4 unknown .*keep two_times=true"):
        hand_over(build("MLP", False), build("MLP", True).state_dict())
    wide = MLP(**SMALL["MLP"] | {"width": 32})
    with pytest.raises(ValueError, match=r"of another shape \(t_embedder"):
        hand_over(wide, build("MLP", False).state_dict())
    with pytest.raises(ValueError, match=r"missing .*unknown"):
        hand_over(build("DiT", True), build("MLP", False).state_dict())


def test_a_second_time_that_is_not_zero_initialized_is_found() -> None:
    with pytest.raises(RuntimeError, match="the student would not start as its teacher"):
        check_second_time_is_zero_initialized(build("MLP", True))


QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False, "num_sanity_val_steps": 0,
}  # fmt: skip


class FlowBatch:
    """Twelve points with labels."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        x = torch.randn(3, generator=torch.Generator().manual_seed(row))
        return {"x": x, "label": torch.tensor(row % 3), "index": torch.tensor(row)}


def loader() -> DataLoader:
    return DataLoader(FlowBatch(), batch_size=6)  # type: ignore[arg-type]


def frozen(module: Any) -> Any:
    """The module with an optimizer that changes nothing."""
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    return module


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = frozen(
        Diffusion(build("MLP", False, dtype=torch.float32), preconditioning=EDMPreconditioning(0.75), seed=0)
    )
    trainer = Trainer(max_steps=1, **QUIET)
    trainer.fit(module, loader())
    path = tmp_path_factory.mktemp("pretrained") / "run.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*have no `val_dataloader`.*")
class TestStages:
    def test_from_stage_to_stage(self, pretrained: Path) -> None:
        """Every stage begins as the model before it, through its own Trainer."""
        source = build("MLP", False, dtype=torch.float32)
        source.load_state_dict(
            {
                name.removeprefix("network."): value
                for name, value in torch.load(pretrained, weights_only=True)["state_dict"].items()
            }
        )
        preconditioning = EDMPreconditioning(0.75)
        teacher = Teacher(str(pretrained), network=build("MLP", False, dtype=torch.float32), steps=2)
        for two_times in (False, True):
            start = {"preconditioning": preconditioning, "init_from": str(pretrained), "seed": 0}
            modules: list[Any] = [CMT(build("MLP", two_times, 5, torch.float32), teacher, **start)]
            if two_times:
                modules.append(MeanFlow(build("MLP", True, 5, torch.float32), **start))
            else:
                modules.append(ConsistencyModel(build("MLP", False, 5, torch.float32), **start))
                modules.append(Diffusion(build("MLP", False, 5, torch.float32), **start))
            for module in modules:
                Trainer(max_steps=1, **QUIET).fit(frozen(module), loader())
                z, t, h, label = inputs(module.network, torch.float32)
                expected = PreconditionedNetwork(source, preconditioning, LinearPath()).velocity(z, t, label)
                found = module.model.on(LinearPath())(z, t, h if two_times else None, label)
                assert found.equal(expected), type(module).__name__

    def test_the_teachers_file_is_an_event(self, pretrained: Path) -> None:
        """Which of the files of a folder was taken."""
        teacher = Teacher(str(pretrained.parent), network=build("MLP", False, dtype=torch.float32))
        module = CMT(build("MLP", True, dtype=torch.float32), teacher, seed=0)
        Trainer(max_steps=1, **QUIET).fit(module, loader())
        events = [json.loads(line) for line in Path("events.jsonl").read_text().splitlines()]
        [event] = [event for event in events if event["event"] == "teacher_loaded"]
        assert Path(event["source"]).resolve() == pretrained.resolve() and event["weights"] == "ema"
        assert event["message"].startswith("the teacher has the ema weights of ")

    def test_another_time_input_is_refused_before_training(self, pretrained: Path) -> None:
        module = MeanFlow(build("MLP", True, 5, torch.float32), init_from=str(pretrained))
        with pytest.raises(ValueError, match=r"init_from=.*EDMPreconditioning.*VelocityPrediction\(\): give"):
            Trainer(max_steps=1, **QUIET).fit(frozen(module), loader())

    def test_a_missing_start_is_refused_before_training(self, tmp_path: Path) -> None:
        module = MeanFlow(build("MLP", True, 5, torch.float32), init_from=str(tmp_path))
        with pytest.raises(ValueError, match=r"init_from=.*holds no checkpoint"):
            Trainer(max_steps=1, **QUIET).fit(frozen(module), loader())

    def test_a_teacher_of_another_shape_is_refused_before_training(self, pretrained: Path) -> None:
        teacher = Teacher(str(pretrained), network=build("MLP", False, dtype=torch.float32))
        student = MLP(dim=2, width=16, depth=1, num_classes=3, two_times=False)
        with pytest.raises(
            ValueError, match=r"teacher makes items of shape \(3,\), the student takes \(2,\)"
        ):
            Trainer(max_steps=1, **QUIET).fit(frozen(CMT(student, teacher)), loader())

    def test_a_teacher_is_in_no_checkpoint(self, pretrained: Path, tmp_path: Path) -> None:
        teacher = Teacher(str(pretrained), network=build("MLP", False, dtype=torch.float32), steps=2)
        module = CMT(
            build("MLP", True, 5, torch.float32), teacher, preconditioning=EDMPreconditioning(0.75), seed=0
        )
        trainer = Trainer(max_steps=1, **QUIET)
        trainer.fit(frozen(module), loader())
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
        assert all(name.startswith("network.") for name in saved["state_dict"])
        assert not {id(p) for p in module.parameters()} & {id(p) for p in teacher.parameters()}


@pytest.mark.parametrize(
    ("make", "two_times", "message"),
    [
        (MeanFlow, False, "MeanFlow trains a network with two time inputs.* two_times=True"),
        (Diffusion, True, "Diffusion trains a network with one time input: build MLP with two_times=False"),
        (ConsistencyModel, True, "ConsistencyModel trains a network with one time input"),
    ],
)
def test_time_inputs_are_checked_when_a_module_is_built(make: Any, two_times: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(build("MLP", two_times))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*have no `val_dataloader`.*")
def test_from_a_converted_checkpoint(tmp_path: Path) -> None:
    """A published EDM network teaches a mean-flow student that starts as that network, on the linear path."""
    from checkpoints import UNETS, preconditioned, wake, write_pickle

    from zoo.flow.convert.convert import convert_checkpoint

    source = wake(UNETS["ddpm++"](num_classes=None, augment_dim=0))
    write_pickle(tmp_path / "edm.pkl", {"ema": preconditioned(source)})
    convert_checkpoint(tmp_path / "edm.pkl", tmp_path / "edm.safetensors")
    teacher = Teacher(str(tmp_path / "edm.safetensors"), steps=2)
    preconditioning = EDMPreconditioning(0.5)
    student = wake(UNETS["ddpm++"](num_classes=None, augment_dim=0, two_times=True), 7)
    module = CMT(
        student,
        teacher,
        preconditioning=preconditioning,
        trajectories=TrajectoryDraws(pairs=1),
        init_from=str(tmp_path / "edm.safetensors"),
        seed=0,
    )
    rows = DataLoader([{"index": torch.arange(2)}], batch_size=None)  # type: ignore[arg-type]
    Trainer(max_steps=1, **QUIET).fit(frozen(module), rows)
    z, t, h, _ = inputs(source, torch.float32)
    expected = PreconditionedNetwork(source.eval(), preconditioning, LinearPath()).velocity(z, t)
    module.eval()
    torch.testing.assert_close(module.model(z, t, h), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(teacher.velocity(LinearPath(), z, t), expected, rtol=1e-5, atol=1e-5)
    wrong = CMT(student, teacher, init_from=str(tmp_path / "edm.safetensors"))
    with pytest.raises(ValueError, match=r"EDMPreconditioning.*sigma_data=0.5.*reads"):
        Trainer(max_steps=1, **QUIET).fit(frozen(wrong), rows)
