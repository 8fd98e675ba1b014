"""The inverse square root schedule: its formula, its state, its argument."""

import pytest
import torch

from zoo.schedules import InverseSquareRootLR


def made(steps: int = 3) -> tuple[torch.optim.Optimizer, InverseSquareRootLR]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.01, 0.5)]
    optimizer = torch.optim.Adam(groups)
    return optimizer, InverseSquareRootLR(optimizer, steps)


def rates(optimizer: torch.optim.Optimizer, schedule: InverseSquareRootLR, updates: int) -> list[list[float]]:
    found = []
    for _ in range(updates):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def test_formula() -> None:
    """Of update k, counted from 0: lr / sqrt(max(k / steps, 1)), in each group of parameters."""
    for k, found in enumerate(rates(*made(), 20)):
        assert found == pytest.approx([lr / max(k / 3, 1) ** 0.5 for lr in (0.01, 0.5)], rel=1e-12)


def test_goes_on_from_its_state() -> None:
    optimizer, schedule = made()
    whole = rates(*made(), 12)
    rates(optimizer, schedule, 7)
    again, resumed = made()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert rates(again, resumed, 5) == whole[7:]


def test_steps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1 update, got 0"):
        made(0)
