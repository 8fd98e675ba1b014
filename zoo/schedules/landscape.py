"""Looking at the loss around a run's checkpoints: is it a river, and what is the hill?

The probes of Wen et al. 2024, arXiv 2410.05192, on any `torch.nn.Module`: between two checkpoints of the
stable phase the loss has a hump or a valley, from one to its decayed child it falls all the way (down the
hill), and two decayed ones lie on one river. `interpolate` shows that, `update_energy` how much of an
update lies in the directions that `zoo.schedules.hessian_eigenvalues` finds, and `loss_by_entropy`
whose loss a decay lowers: that of the uncertain tokens.

Every probe works in evaluation mode and leaves the module as it was, bitwise, whatever happens in it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo._modes import evaluating

Loss = Callable[[Any, Any], Tensor]  # of a module and a batch: type(module).loss, say
DEFAULT_POINTS = tuple(round(-0.2 + 0.1 * k, 1) for k in range(15))


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every mode, parameter and buffer is what it was.

    It keeps one copy of the module's state.
    """
    kept = {name: value.detach().clone() for name, value in module.state_dict().items()}
    with evaluating(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in module.state_dict().items():
                    value.copy_(kept[name])


def interpolate(
    module: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    loss: Loss,
    batches: Sequence[Any],
    points: Sequence[float] = DEFAULT_POINTS,
) -> list[float]:
    """The loss along the line through two checkpoints.

    Args:
        module: The module that the checkpoints are of, on the device of the batches.
        a: State dict at 0. What is not a floating-point number is taken from it everywhere.
        b: State dict at 1.
        loss: Of a module and a batch, a scalar; ``type(module).loss`` for a method.
        batches: Evaluated at each point; the mean over them counts each the same.
        points: Where to evaluate, from -0.2 to 1.2 if not given.

    Returns:
        The mean loss at (1 - t) a + t b for each t in ``points``.

    Raises:
        ValueError: no batches, or state dicts that are not of this module.

    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> a, b = {"weight": torch.tensor([[0.0]])}, {"weight": torch.tensor([[2.0]])}
    >>> square = lambda module, batch: (module(batch) - batch).square().mean()
    >>> interpolate(net, a, b, square, [torch.ones(1, 1)], points=[0.0, 0.5, 1.0])
    [1.0, 0.0, 1.0]
    """
    _check_batches(batches)
    target = module.state_dict()
    for letter, state in (("a", a), ("b", b)):
        for name, value in target.items():
            if name not in state or state[name].shape != value.shape:
                found = tuple(state[name].shape) if name in state else "nothing of that name"
                raise ValueError(
                    f"{letter} must be a state dict of {type(module).__name__}: for {name!r} of shape "
                    f"{tuple(value.shape)} it holds {found}"
                )
    start, stop = (_ends(state, target) for state in (a, b))
    losses = []
    with unchanged(module), torch.no_grad():
        for t in points:
            for name, value in target.items():
                blend = value.is_floating_point()
                value.copy_((1 - t) * start[name] + t * stop[name] if blend else start[name])
            losses.append(math.fsum(float(loss(module, batch)) for batch in batches) / len(batches))
    return losses


def update_energy(delta: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]]) -> float:
    """The share of an update that lies in a few directions: |P delta|^2 / |delta|^2.

    In a river valley the updates of the stable phase lie mostly in the directions of large curvature,
    across the river, though progress is made along it. A random direction has (vectors / parameters).

    Args:
        delta: The difference of two state dicts. Names that the vectors lack (buffers, frozen parameters)
            do not count.
        vectors: Orthonormal directions, as `zoo.schedules.hessian_eigenvalues` gives them.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: no vectors, vectors that are not orthonormal, names that ``delta`` lacks, or an update of
            length 0.

    >>> delta = {"w": torch.tensor([3.0, 4.0])}
    >>> round(update_energy(delta, [{"w": torch.tensor([0.0, 1.0])}]), 6)
    0.64
    """
    if not vectors:
        raise ValueError("vectors must hold at least one direction")
    if missing := sorted(vectors[0].keys() - delta.keys()):
        raise ValueError(f"delta lacks {missing}, which the vectors have: take differences of state dicts")

    def dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
        pairs = ((left[name].detach().double(), right[name].detach().double()) for name in vectors[0])
        return math.fsum(float((one.cpu() * other.cpu()).sum()) for one, other in pairs)

    for i, vector in enumerate(vectors):
        for j, other in enumerate(vectors[: i + 1]):
            if abs(dot(vector, other) - (i == j)) > 1e-3:
                raise ValueError(
                    f"vectors must be orthonormal, but the product of numbers {j} and {i} is "
                    f"{dot(vector, other):.6g}"
                )
    length = dot(delta, delta)
    if length == 0:
        raise ValueError("delta is zero in every tensor of the vectors: its energy has no direction")
    return math.fsum(dot(delta, vector) ** 2 for vector in vectors) / length


def predictive_entropy(logits: Tensor) -> Tensor:
    """The entropy of the categorical laws that logits stand for, in nats.

    Args:
        logits: (..., V). -inf is a probability of 0.

    Returns:
        (...,) from 0 to log V, in float32 at least.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, -float("inf")]], dtype=torch.float64)
    >>> predictive_entropy(logits).round(decimals=4).tolist()
    [0.6931, 0.0]
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.special.entr(wide.softmax(-1)).sum(-1)


@dataclass(frozen=True)
class EntropyBuckets:
    """Losses of tokens by how uncertain the next token is.

    Attributes:
        highest: (K,) the highest entropy of each bucket, in nats, rising.
        loss: (K,) the mean loss of its tokens.
        count: (K,) how many they are.
    """

    highest: list[float]
    loss: list[float]
    count: list[int]


def loss_by_entropy(losses: Tensor, entropies: Tensor, buckets: int = 10) -> EntropyBuckets:
    """The mean loss of tokens, by quantile of their entropy.

    With the entropies of one reference (exact ones, or those of a decayed checkpoint) for two checkpoints,
    the buckets are the same, and the difference shows whose loss fell.

    Args:
        losses: Of any shape, one for each token.
        entropies: Of the same shape.
        buckets: Quantiles. Tokens of equal entropy share a bucket, so there may be fewer.

    Returns:
        The buckets that hold tokens.

    Raises:
        ValueError: shapes that differ, no tokens, values that are not finite, or no buckets.

    >>> found = loss_by_entropy(torch.tensor([1.0, 3.0, 5.0, 9.0]), torch.tensor([0.0, 0.1, 0.7, 0.7]), 2)
    >>> found.loss, found.count
    ([2.0, 7.0], [2, 2])
    """
    if losses.shape != entropies.shape or not losses.numel():
        raise ValueError(
            "losses and entropies must be one for each token, of one shape, got "
            f"{tuple(losses.shape)} and {tuple(entropies.shape)}"
        )
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")
    loss, entropy = (values.detach().cpu().double().flatten() for values in (losses, entropies))
    if not (loss.isfinite().all() and entropy.isfinite().all()):
        raise ValueError("losses and entropies must be finite: leave padding out before the call")
    ranks = [-(-number * len(entropy) // buckets) - 1 for number in range(1, buckets + 1)]
    highest = entropy.sort().values[[max(rank, 0) for rank in ranks]].unique()  # (K,) sorted
    bucket = torch.bucketize(entropy, highest)  # the first whose highest is not below
    count = torch.bincount(bucket, minlength=len(highest))
    total = torch.zeros(len(highest), dtype=torch.float64).index_add_(0, bucket, loss)
    return EntropyBuckets(highest.tolist(), (total / count).tolist(), count.tolist())


def _ends(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict beside a module: the module's own, given as an end of the line, would move with it."""
    ends = {name: state[name].detach().to(value.device) for name, value in target.items()}
    own = {name for name, value in target.items() if ends[name].data_ptr() == value.data_ptr()}
    return {name: value.clone() if name in own else value for name, value in ends.items()}


def _check_batches(batches: Sequence[Any]) -> None:
    if not isinstance(batches, Sequence) or not batches:
        raise ValueError(
            "batches must be a list with at least one batch, since it is gone through several times"
        )
