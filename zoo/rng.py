"""Counter-based random draws: a pure function of (seed, step, item), equal wherever the item lands.

A draw depends on the run's seed, the optimizer step, the *global index of the data item* and the name of what
is drawn, and on nothing else: not on the batch size, the rank, the position in the batch, or what was drawn
before. One process on a batch of 64 and two on 32 each therefore see the same noise, and a resumed run
continues exactly, with no generator state to save.

The generator is splitmix64 (Steele, Lea, Flood 2014; the constants are Vigna's): each (seed, name, step,
item) starts a stream of its own, hashed by the same finalizer, all items at once in int64 arithmetic.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK
    return z ^ (z >> 31)


def _xor_shift_(z: Tensor, bits: int) -> Tensor:
    # torch's int64 shift keeps the sign; the mask makes it the logical shift of the algorithm.
    return z.bitwise_xor_((z >> bits).bitwise_and_((1 << (64 - bits)) - 1))


def _mix_(z: Tensor) -> Tensor:
    """The finalizer, in place: large draws are bound by memory."""
    _xor_shift_(z, 30).mul_(_signed(_MIX1))
    _xor_shift_(z, 27).mul_(_signed(_MIX2))
    return _xor_shift_(z, 31)


def bits(seed: int, step: int, index: Tensor, count: int, name: str = "") -> Tensor:
    """64 random bits for each of ``count`` draws of each item.

    Args:
        seed: The run's seed.
        step: The optimizer step (`trainer.global_step`), or any other counter.
        index: Global item indices (B,), integers.
        count: Draws per item.
        name: What is drawn; another name gives independent draws.

    Returns:
        (B, count) int64 on the device of ``index``.

    >>> bits(0, 0, torch.tensor([7, 3]), 2)[0].equal(bits(0, 0, torch.tensor([7]), 2)[0])
    True
    """
    if index.is_floating_point():
        raise TypeError(f"index must hold integers (global item indices), got {index.dtype}")
    key = _mix_int((seed + _GOLDEN * (zlib.crc32(name.encode()) + 1)) & _MASK)
    key = _mix_int(((key ^ (step & _MASK)) + _GOLDEN) & _MASK)
    streams = _mix_((index.long().reshape(-1, 1) ^ _signed(key)) + _signed(_GOLDEN))  # (B, 1)
    counter = torch.arange(1, count + 1, device=index.device) * _signed(_GOLDEN)  # (count,)
    return _mix_(streams + counter)  # (B, count)


def uniform(
    seed: int,
    step: int,
    index: Tensor,
    shape: Sequence[int] = (),
    name: str = "",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform draws in [0, 1) with the full mantissa of ``dtype`` (24 bits for float32, 53 for float64).

    Args:
        seed: The run's seed.
        step: The optimizer step, or any other counter.
        index: Global item indices (B,), integers.
        shape: Shape of one item's draws.
        name: What is drawn; another name gives independent draws.
        dtype: float32 or float64.

    Returns:
        (B, *shape) on the device of ``index``.

    >>> uniform(0, 1, torch.arange(2), (3,)).shape
    torch.Size([2, 3])
    """
    keep = 53 if dtype == torch.float64 else 24
    draws = bits(seed, step, index, math.prod(shape), name)
    mantissa = (draws >> (64 - keep)) & ((1 << keep) - 1)
    return (mantissa.to(dtype) * 2.0**-keep).reshape(-1, *shape)


def normal(
    seed: int,
    step: int,
    index: Tensor,
    shape: Sequence[int] = (),
    name: str = "",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal draws (Box-Muller on two halves of one 64-bit draw; the largest possible is 6.8).

    Computed in float64 and rounded: vectorised and scalar code paths of a math library may differ in the last
    bit, and rounding to float32 hides that, so the draw is the same at any place in any batch.

    Args:
        seed: The run's seed.
        step: The optimizer step, or any other counter.
        index: Global item indices (B,), integers.
        shape: Shape of one item's draws.
        name: What is drawn; another name gives independent draws.
        dtype: Result type.

    Returns:
        (B, *shape) on the device of ``index``.

    >>> z = normal(0, 0, torch.arange(1000), (10,))
    >>> bool(abs(z.mean()) < 0.05) and bool(abs(z.std() - 1) < 0.05)
    True
    """
    size = math.prod(shape)
    draws = bits(seed, step, index, (size + 1) // 2, name)  # one draw makes a pair of normals
    high = ((draws >> 32) & 0xFFFFFFFF).double()
    angle = (draws.bitwise_and_(0xFFFFFFFF)).double().mul_(2.0 * math.pi * 2.0**-32)
    radius = high.add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    pair = torch.stack(
        [angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=-1
    )  # (B, ceil(size / 2), 2)
    return pair.flatten(1)[:, :size].to(dtype).reshape(-1, *shape)


def permutation(seed: int, epoch: int, size: int, name: str = "permutation") -> Tensor:
    """The order of ``size`` items in pass number ``epoch``: a permutation (size,) of int64.

    >>> sorted(permutation(0, 0, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return bits(seed, epoch, torch.arange(size), 1, name)[:, 0].argsort(stable=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's own draws on the CPU come from ``seed``; afterwards they go on as before.

    For initializers, which know no generator. The generators of other devices are not touched.

    >>> state = torch.random.get_rng_state()
    >>> with seeded(3):
    ...     one = torch.rand(2)
    >>> with seeded(3):
    ...     torch.equal(one, torch.rand(2)), torch.equal(state, torch.random.get_rng_state())
    (True, False)
    >>> torch.equal(state, torch.random.get_rng_state())
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
