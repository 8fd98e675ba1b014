"""Handing a network over from one stage of training to the next, so that it computes what it did.

Between two stages the network may gain a second time input (diffusion -> mean flow) and may be read on
another path. The first is exact because the new weights are zero where they meet the old ones
(`two_time_state` of a network; `complete_state` for what else a network may gain), the second because a
preconditioning reads the same output on any path: the student's velocity *is* the teacher's at step 0. What
cannot be exact is refused: another architecture, another preconditioning, a time input too few.

The official code of CMT's mean-flow branch leaves the new embedder at random values, so its student is not
equal to its teacher when it starts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo._modes import evaluating
from zoo.flow.preconditioning import Preconditioning
from zoo.flow.stored_network import read_stored_network
from zoo.state_dicts import WeightReport, Weights, differences


def hand_over(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Fills ``network`` with the weights ``state``, widened to a second time input where only it has one.

    Args:
        network: The network to fill, with `two_times`, `two_time_state` and, where it may gain more than a
            input, `complete_state`, as those of `zoo.flow.networks` have.
        state: A whole state dict of the same network, with one time input or two.

    Returns:
        What was done, in words.

    Raises:
        ValueError: names or shapes differ.
    """
    own = network.state_dict()
    complete = getattr(network, "complete_state", None)
    state = dict(state) if complete is None else complete(dict(state))
    if not differences(own, state):
        network.load_state_dict(state)
        return f"all {len(state)} tensors taken"
    widen = getattr(network, "two_time_state", None)
    if getattr(network, "two_times", False) and widen is not None and not _has_second_time(network, state):
        wide = widen(state)
        if not differences(own, wide):
            network.load_state_dict(wide)
            check_second_time_is_zero_initialized(network)
            return f"all {len(state)} tensors taken, and a zero-initialized second time input"
        state = wide
    elif not getattr(network, "two_times", True) and set(state) - set(own):
        raise ValueError(
            f"the weights do not fit {type(network).__name__} with one time input: "
            f"{differences(own, state)}. If they are of a network with two, their velocities depend on h: "
            "keep two_times=true"
        )
    raise ValueError(f"the weights do not fit {type(network).__name__}: {differences(own, state)}")


def take_network(
    network: nn.Module, preconditioning: Preconditioning, file: Path, weights: Weights
) -> WeightReport:
    """Fills ``network`` from a checkpoint, or from a file that ``zoo convert`` made.

    Args:
        network: The network to fill.
        preconditioning: What its output means.
        file: A checkpoint of a module of zoo.flow, or a converted one.
        weights: The average ("ema") or what the optimizer updated ("raw").

    Returns:
        What was taken, and what is new in the network.

    Raises:
        ValueError: the weights do not fit, or the output means another thing.
    """
    stored = read_stored_network(file, weights)
    check_preconditioning(preconditioning, stored.preconditioning, str(file))
    hand_over(network, stored.state)
    new = tuple(name for name in network.state_dict() if name not in stored.state)
    return WeightReport(matched=tuple(stored.state), missing=new, unexpected=(), mismatched=())


def check_second_time_is_zero_initialized(network: nn.Module, items: int = 2) -> None:
    """Compares outputs at h = 0 and at other h on random states; they must be equal in every bit.

    Raises:
        RuntimeError: they differ, so the network is not the function its weights came from.
    """
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(items, *network.shape, generator=generator).to(parameter)  # type: ignore[misc]
    t = torch.linspace(0.2, 0.9, items, device=parameter.device)
    label = None if network.num_classes is None else torch.zeros_like(t, dtype=torch.long)
    with torch.no_grad(), evaluating(network):
        still, moved = network.forward(z, t, torch.zeros_like(t), label), network.forward(z, t, t, label)
    if not still.equal(moved):
        raise RuntimeError(
            f"{type(network).__name__}.two_time_state gives weights whose output depends on h (by up to "
            f"{(still - moved).abs().max().item():.3g}): the student would not start as its teacher"
        )


def check_preconditioning(own: Preconditioning, saved: Mapping[str, Any] | None, source: str) -> None:
    """Refuses weights whose output means another thing than ``own`` reads in it.

    The boundary of a consistency model may differ: it is of no matter to a diffusion model's weights, and
    moving it changes what they compute near the data alone.

    Args:
        own: The preconditioning of the module that takes the weights.
        saved: `Preconditioning.describe` of the one they were trained with, if it is known.
        source: Where they come from, for the message.

    Raises:
        ValueError: the two differ.
    """
    if saved is not None and _meaning(saved) != _meaning(own.describe()):
        written = ", ".join(f"{name}={value}" for name, value in saved.items() if name != "class")
        raise ValueError(
            f"{source} was trained with {saved['class']}({written}), and this module reads its network's "
            f"output with {own}: give the module the same preconditioning (it works on any path)"
        )


def _meaning(described: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name != "boundary"}


def _has_second_time(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` has all the names of the network with two time inputs, with its shapes or others."""
    own = network.state_dict()
    return own.keys() <= state.keys() and all(own[name].shape == state[name].shape for name in own)
