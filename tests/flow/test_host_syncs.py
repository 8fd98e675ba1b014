"""No step waits for its device: the meta device holds no values, so whoever asks for one gets an error."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zoo.flow import (
    CMT,
    ConsistencyModel,
    ContinuousConsistency,
    Diffusion,
    DiscreteConsistency,
    DiT,
    EDMPreconditioning,
    FiniteDifference,
    GridLevels,
    Guidance,
    ImprovedMeanFlow,
    LogVariance,
    MeanFlow,
    MeanFlowTarget,
    PreconditionedNetwork,
    Teacher,
    TrajectoryDraws,
)

EDM = EDMPreconditioning(0.75)


def network(two_times: bool) -> DiT:
    return DiT(8, 1, 4, width=16, depth=1, heads=2, num_classes=3, two_times=two_times)


def teacher() -> Teacher:
    return Teacher.of(PreconditionedNetwork(network(False), EDM), steps=3, omega=1.5)


STAGES: dict[str, Any] = {
    "diffusion": lambda: Diffusion(network(False), preconditioning=EDM, uncertainty=LogVariance(8), seed=0),
    "CMT of mean flow": lambda: CMT(
        network(True), teacher(), preconditioning=EDM, trajectories=TrajectoryDraws(pairs=2), seed=0
    ),
    "CMT of consistency": lambda: CMT(
        network(False), teacher(), preconditioning=EDM, trajectories=TrajectoryDraws(start="data"), seed=0
    ),
    "CMT of stored trajectories": lambda: CMT(
        network(True), preconditioning=EDM, trajectories=TrajectoryDraws(pairs=2), seed=0
    ),
    "ECT": lambda: ConsistencyModel(network(False), preconditioning=EDM, seed=0),
    "CD": lambda: ConsistencyModel(
        network(False),
        preconditioning=EDM,
        objective=DiscreteConsistency(GridLevels(mean=None), second_order=True),
        teacher=teacher(),
        seed=0,
    ),
    "sCD": lambda: ConsistencyModel(
        network(False), preconditioning=EDM, objective=ContinuousConsistency(), teacher=teacher(), seed=0
    ),
    "mean flow": lambda: MeanFlow(network(True), guidance=Guidance(omega=1.5, kappa=0.2), seed=0),
    "improved mean flow": lambda: ImprovedMeanFlow(
        DiT(8, 1, 4, width=16, depth=2, heads=2, num_classes=3, guidance=True, velocity_depth=1), seed=0
    ),
    "MFD by differences": lambda: MeanFlow(
        network(True),
        preconditioning=EDM,
        target=MeanFlowTarget(teacher=teacher(), derivative=FiniteDifference()),
        seed=0,
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_asks_the_device_for_nothing(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # unknown on this device
    module = STAGES[stage]().to("meta")
    module._frozen.to(torch.device("meta"))
    object.__setattr__(module, "_trainer", SimpleNamespace(global_step=3, world_size=1, global_rank=0))
    module.log = lambda *args, **kwargs: None
    batch = {
        "x": torch.empty(6, 1, 8, 8, device="meta"),
        "label": torch.empty(6, dtype=torch.long, device="meta"),
        "index": torch.arange(6),  # stays on the CPU, where the zoo's datamodules leave it
    }
    if "stored" in stage:
        batch["states"] = torch.empty(6, 4, 1, 8, 8, device="meta")
        batch |= {"times": (80.0, 2.0, 0.5, 0.002), "path": "VarianceExplodingPath()"}
    loss = module._loss(batch, 0, "train", 3)
    loss.backward()
    assert loss.device.type == "meta"
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_the_meta_device_finds_a_sync() -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        torch.empty(1, device="meta").item()
