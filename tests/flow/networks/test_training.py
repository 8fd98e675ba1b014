"""U-Nets in the stages of training, and under DDP."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from checkpoints import UNETS
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from zoo.flow import (
    ConsistencyModel,
    Diffusion,
    DiscreteConsistency,
    EDMPreconditioning,
    MeanFlow,
    RatioLevels,
    VarianceExplodingPath,
)

every_unet = pytest.mark.parametrize("kind", UNETS)


def images() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 2, 8, 8, generator=generator)
    items: Any = [{"x": x[i], "label": torch.tensor(i % 3), "index": torch.tensor(i)} for i in range(16)]
    return DataLoader(items, batch_size=4)


def fit(module: LightningModule, **arguments: Any) -> dict[str, Tensor]:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_steps": 3, "limit_val_batches": 0,
    }  # fmt: skip
    Trainer(**quiet | arguments).fit(module, images(), images())
    after = module.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not value.equal(before[name]) for name, value in after.items())
    return after


@every_unet
def test_every_stage_trains_them(kind: str) -> None:
    """Forced weights, which change in place, stand the passes of a self-teacher and of a derivative."""
    preconditioning = EDMPreconditioning(0.5)
    fit(Diffusion(UNETS[kind](), preconditioning=preconditioning))
    goal = DiscreteConsistency(RatioLevels(q=4))
    fit(
        ConsistencyModel(
            UNETS[kind](dropout=0.2),
            preconditioning=preconditioning,
            objective=goal,
            path=VarianceExplodingPath(),
        )
    )
    fit(MeanFlow(UNETS[kind](two_times=True)))


@every_unet
def test_mixed_precision_trains_them(kind: str) -> None:
    fit(MeanFlow(UNETS[kind](two_times=True)), precision="bf16-mixed")


@pytest.fixture
def one_process() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every_unet
@pytest.mark.parametrize(
    "changes", [{"two_times": False, "num_classes": None}, {"two_times": False}, {"two_times": True}]
)
def test_ddp_finds_no_parameter_unused(kind: str, changes: dict[str, Any], one_process: None) -> None:
    network: nn.Module = UNETS[kind](**changes)
    parallel = DistributedDataParallel(network)
    z, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    for _ in range(2):  # the second pass would complain of the first
        parallel(z, t, t if changes["two_times"] else None).square().sum().backward()
        for parameter in network.parameters():
            assert parameter.grad is not None
