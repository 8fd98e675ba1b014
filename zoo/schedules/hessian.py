"""The largest eigenvalues of a loss's Hessian, by Lanczos on products with vectors.

In the river valley (arXiv 2410.05192, section 3) the hill is the span of the leading eigenvectors. SGD
without momentum is stable in a direction while learning rate times eigenvalue stays below 2, so
``rate * values[0]`` says how near the edge a run is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.schedules.landscape import Loss, _check_batches, unchanged


@dataclass(frozen=True)
class HessianSpectrum:
    """The top of a Hessian's spectrum.

    Attributes:
        values: (K,) the largest eigenvalues, falling.
        vectors: K directions of length 1, as names and tensors of the parameters' shapes.
        residuals: (K,) |H v - value v|: an eigenvalue of H lies within this of each value.
        iterations: Products with the Hessian that were taken.
    """

    values: list[float]
    vectors: list[dict[str, Tensor]]
    residuals: list[float]
    iterations: int


def hessian_eigenvalues(
    module: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    count: int = 1,
    iterations: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> HessianSpectrum:
    """The largest eigenvalues of the mean loss over some batches, in the parameters that are trained.

    Lanczos with full re-orthogonalization. Each iteration takes one product H v, by double backward, which
    costs about four gradients; vectors are kept, so it takes ``iterations`` times the memory of the trained
    parameters, beside the graph of one batch. Attention runs on torch's plain kernel, since fused ones have
    no second derivative. Shared parameters count once, frozen ones not at all. An eigenvalue that occurs
    several times may be found fewer times.

    Args:
        module: The module, on the device of the batches.
        loss: Of a module and a batch, a scalar; ``type(module).loss`` for a method.
        batches: Gone through in each iteration; the mean over them counts each the same.
        count: How many eigenvalues.
        iterations: At most so many products with the Hessian.
        tolerance: Stop when each residual is below this share of the largest of |values|. Whether it was
            reached is told by the residuals.
        seed: Of the first vector.

    Returns:
        The eigenvalues with their vectors and residuals.

    Raises:
        ValueError: no batches, nothing to train, fewer iterations or parameters than eigenvalues, or a loss
            that is not a scalar.

    >>> point = torch.nn.ParameterDict({"x": torch.zeros(3)})
    >>> valley = lambda module, scale: 0.5 * (scale * module["x"] ** 2).sum()
    >>> found = hessian_eigenvalues(point, valley, [torch.tensor([9.0, 1.0, -4.0])], count=2)
    >>> [round(value, 4) for value in found.values]
    [9.0, 1.0]
    """
    _check_batches(batches)
    names = {name: p for name, p in module.named_parameters() if p.requires_grad}
    size = sum(p.numel() for p in names.values())
    if not 1 <= count <= min(iterations, size):
        raise ValueError(
            f"count must be at least 1, and at most iterations ({iterations}) and the number of trained "
            f"parameters ({size}), got {count}"
        )
    weights = list(names.values())
    with unchanged(module), _plain_attention(), torch.enable_grad():
        found = _lanczos(weights, module, loss, batches, count, iterations, tolerance, seed)
    values, vectors, residuals, steps = found
    return HessianSpectrum(
        values=values.tolist(),
        vectors=[_unflatten(vector, names) for vector in vectors],
        residuals=residuals.tolist(),
        iterations=steps,
    )


def _plain_attention() -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def _lanczos(
    weights: list[nn.Parameter],
    module: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    count: int,
    iterations: int,
    tolerance: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Eigenvalues (K,), vectors (K, P), residuals (K,), and the number of products taken."""
    size, like = sum(p.numel() for p in weights), weights[0]
    generator = torch.Generator().manual_seed(seed)
    basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []  # the off-diagonal of the tridiagonal matrix

    def fresh() -> Tensor:
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        return _normalized(_orthogonal(drawn.to(like), basis))

    vector = fresh()
    while True:
        basis.append(vector)
        image = _hessian_times(vector, weights, module, loss, batches)
        diagonal.append(float(image @ vector))
        rest = _orthogonal(image, basis)
        norm = float(rest.norm())
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for k, value in enumerate(beside):
            small[k, k + 1] = small[k + 1, k] = value
        values, mixes = torch.linalg.eigh(small)  # rising
        scale = float(values.abs().max())
        top = min(count, len(values))
        residuals = (norm * mixes[-1, -top:]).abs()
        done = top == count and bool((residuals <= tolerance * scale).all())
        if done or len(basis) in (iterations, size):
            break
        # Rounding alone is left: the vectors span an invariant space. Go on in what it leaves out.
        closed = norm <= 100 * torch.finfo(image.dtype).eps * max(scale, float(image.norm()))
        vector = fresh() if closed else rest / norm
        beside.append(0.0 if closed else norm)
    vectors = mixes[:, -top:].T.flip(0).to(like) @ torch.stack(basis)  # (K, P)
    return values[-top:].flip(0), vectors, residuals.flip(0), len(basis)


def _hessian_times(
    vector: Tensor, weights: list[nn.Parameter], module: nn.Module, loss: Loss, batches: Sequence[Any]
) -> Tensor:
    total = torch.zeros_like(vector)
    for batch in batches:
        value = loss(module, batch)
        if value.ndim or not value.requires_grad:
            raise ValueError(
                "loss must return a scalar with a gradient in the trained parameters, got a tensor of shape "
                f"{tuple(value.shape)} {'with' if value.requires_grad else 'without'} one"
            )
        grads = torch.autograd.grad(
            value, weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
        slope = torch.cat([grad.flatten() for grad in grads]) @ vector
        if not slope.requires_grad:  # a loss that is linear in the weights has no curvature
            continue
        seconds = torch.autograd.grad(slope, weights, allow_unused=True, materialize_grads=True)
        total += torch.cat([second.flatten() for second in seconds]).detach() / len(batches)
    return total


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """What of a vector lies outside the basis; taken twice, since rounding leaves some of it in."""
    for _ in range(2):
        for other in basis:
            vector = vector - (other @ vector) * other
    return vector


def _normalized(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _unflatten(vector: Tensor, names: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    parts = vector.split([p.numel() for p in names.values()])
    return {name: part.reshape(p.shape) for (name, p), part in zip(names.items(), parts, strict=True)}
