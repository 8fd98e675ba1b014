"""Every LightningModule of the zoo through `ModuleTester`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from module_tester import ModuleCase, ModuleTester, build

from zoo.flow.trajectories import Shard, write_shard

DIGITS = {"class_path": "zoo.datamodules.Digits", "init_args": {"batch_size": 32, "seed": 0}}
TEACHER = "{teacher}"  # stands for the checkpoint of `teacher`
STORED = "{stored}"  # stands for the folder of `stored`
TRAJECTORIES = {
    "class_path": "zoo.datamodules.Trajectories",
    "init_args": {"path": STORED, "batch_size": 32, "val_share": 0.25, "seed": 0},
}


def network(two_times: bool, dropout: float = 0.1) -> dict[str, Any]:
    return {
        "class_path": "zoo.flow.networks.DiT",
        "init_args": {
            "input_size": 8, "in_channels": 1, "patch_size": 4, "width": 16, "depth": 1, "heads": 2,
            "num_classes": 10, "dropout": dropout, "two_times": two_times,
        },
    }  # fmt: skip


EDM = {"class_path": "zoo.flow.EDMPreconditioning", "init_args": {"sigma_data": 0.75}}
SOLVES = {"class_path": "zoo.flow.Teacher", "init_args": {"checkpoint": TEACHER, "steps": 3, "omega": 1.5}}
NO_DROPOUT = {"init_args.network.init_args.dropout": 0.0}


def module(name: str, two_times: bool, more: dict[str, Any] | None = None, **arguments: Any) -> ModuleCase:
    made = network(two_times)
    made["init_args"] |= more or {}
    arguments |= {"network": made, "seed": 0}
    return ModuleCase(
        model={"class_path": f"zoo.flow.{name}", "init_args": arguments},
        data=DIGITS,
        without_dropout=NO_DROPOUT,
    )  # fmt: skip


CASES = {
    "MeanFlow": module(
        "MeanFlow",
        True,
        times={"class_path": "zoo.flow.MeanFlowTimes", "init_args": {"prob_r_neq_t": 0.5}},
        guidance={"omega": 1.5},
    ),
    "MeanFlow, distilled by differences": module(
        "MeanFlow", True, preconditioning=EDM,
        target={
            "teacher": SOLVES, "tangent": "network",
            "derivative": {"class_path": "zoo.flow.FiniteDifference"},
        },
    ),
    "ImprovedMeanFlow": module(
        "ImprovedMeanFlow", True, {"guidance": True, "velocity_depth": 1, "depth": 2}, sampler={"omega": 2.0}
    ),
    "Diffusion": module(
        "Diffusion", False, preconditioning=EDM, uncertainty={"class_path": "zoo.flow.LogVariance"}
    ),
    "CMT of mean flow": module("CMT", True, preconditioning=EDM, teacher=SOLVES, trajectories={"pairs": 2}),
    "CMT of consistency": module(
        "CMT", False, preconditioning=EDM, teacher=SOLVES, trajectories={"start": "data"}
    ),
    "CMT of stored trajectories": replace(
        module("CMT", True, preconditioning=EDM, teacher=None, trajectories={"pairs": 2}), data=TRAJECTORIES
    ),
    "ConsistencyModel, discrete": module(
        "ConsistencyModel", False, label_dropout=0.1,
        objective={
            "class_path": "zoo.flow.DiscreteConsistency",
            "init_args": {
                "levels": {"class_path": "zoo.flow.GridLevels", "init_args": {"double_every": 2}},
                "target_decay": 0.5,
            },
        },
    ),
    "ConsistencyModel, continuous": module(
        "ConsistencyModel", False, preconditioning=EDM, teacher=SOLVES,
        objective={"class_path": "zoo.flow.ContinuousConsistency", "init_args": {"warmup": 3}},
    ),
    "CausalLM": ModuleCase(
        model={
            "class_path": "zoo.lm.CausalLM",
            "init_args": {
                "config": {
                    "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 256,
                    "n_positions": 32, "resid_pdrop": 0.1,
                },
                "z_loss": 1e-3, "generation": {"max_new_tokens": 4}, "seed": 0,
            },
        },
        data={
            "class_path": "zoo.datamodules.Text",
            "init_args": {"context": 16, "prompt_tokens": 8, "batch_size": 32, "seed": 0},
        },
        without_dropout={
            "init_args.config.resid_pdrop": 0.0, "init_args.config.embd_pdrop": 0.0,
            "init_args.config.attn_pdrop": 0.0,
        },
    ),
    "ImageClassifier": ModuleCase(
        model={
            "class_path": "zoo.vision.ImageClassifier",
            "init_args": {
                "options": {
                    "img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 1,
                    "num_heads": 2, "proj_drop_rate": 0.1,
                },
                "seed": 0,
            },
        },
        data={"class_path": "zoo.datamodules.Digits", "init_args": {"batch_size": 32, "seed": 0}},
        without_dropout={"init_args.options.proj_drop_rate": 0.0},
    ),
    "BigramTable": ModuleCase(
        model={"class_path": "zoo.lm.BigramTable", "init_args": {"n": 40, "seed": 0}},
        data={
            "class_path": "zoo.datamodules.Bigram",
            "init_args": {"n": 40, "certain": 20, "size": 96, "batch_size": 32, "seed": 0},
        },
        compile_flag=None,
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a run of the command line leaves it, of a diffusion model that was not trained."""
    torch.manual_seed(0)
    config = network(two_times=False)
    made = build(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("teacher") / "run.ckpt"
    contents = {
        "state_dict": {f"network.{name}": value for name, value in made.state_dict().items()},
        "hyper_parameters": {"network": config},
        "flow": {"preconditioning": build(EDM).describe()},
        "global_step": 1,
    }
    torch.save(contents, path)
    return path


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trajectories of three steps, of which nothing is asked but their form."""
    folder = tmp_path_factory.mktemp("stored")
    states = torch.randn(320, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([80.0, 2.0, 0.5, 0.002], dtype=torch.float64)
    states = states * times.float()[:, None, None, None]  # noise at first
    index = torch.arange(320)
    shard = Shard(states, times, index, index % 11, "VarianceExplodingPath()")  # label 10 is unconditional
    write_shard(folder / "trajectories-0-00000.safetensors", shard)
    return folder


@pytest.fixture(scope="class", params=CASES)
def case(request: pytest.FixtureRequest, teacher: Path, stored: Path) -> ModuleCase:
    written = CASES[request.param]

    def placed(config: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(config).replace(TEACHER, str(teacher)).replace(STORED, str(stored)))

    return replace(written, model=placed(written.model), data=placed(written.data))


class TestModules(ModuleTester):
    pass
