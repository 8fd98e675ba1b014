"""Distances between two sets of vectors that need no pretrained network: Frechet and sliced Wasserstein.

Frechet distance: Dowson and Landau 1982; on images' features it is the FID of Heusel et al. 2017, arXiv
1706.08500. Sliced Wasserstein: Bonneel et al. 2015.
"""

import torch
from torch import Tensor


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared Frechet distance of two fitted Gaussians: |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)).

    The covariances are the unbiased ones, in float64. The trace of the root is the sum of the square roots of
    the eigenvalues of S_x^(1/2) S_y S_x^(1/2), which is symmetric, so that rank-deficient sets are no special
    case.

    Args:
        x: (N, D), N > 1.
        y: (M, D), M > 1.

    Returns:
        A float64 scalar, 0 for equal sets. A finite sample adds a bias that shrinks like 1 / N: compare sets
        of one size, and put the distance between two real sets of that size beside it.

    Raises:
        ValueError: the sets are not (N, D) and (M, D) with two rows at least.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> frechet_distance(x, x + 3).item()  # 3^2
    9.0
    >>> round(frechet_distance(x, 3 * x).item(), 6)  # 2^2 + (3 sqrt 2 - sqrt 2)^2
    12.0
    """
    check_sets(x, y)
    x, y = x.double(), y.double()
    return frechet_of_moments(x.mean(0), _covariance(x), y.mean(0), _covariance(y))


def frechet_of_moments(mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor) -> Tensor:
    """`frechet_distance` from means (D,) and covariances (D, D), as references hold them.

    >>> one = torch.eye(2, dtype=torch.float64)
    >>> round(frechet_of_moments(one[0], one, one[1], 4 * one).item(), 6)  # 2 + 2 (1 - 2)^2
    4.0
    """
    mean_x, covariance_x, mean_y, covariance_y = (
        moment.double() for moment in (mean_x, covariance_x, mean_y, covariance_y)
    )
    values, vectors = torch.linalg.eigh(covariance_x)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ covariance_y @ root)
    cross = product.clamp(min=0).sqrt().sum()
    shift = (mean_x - mean_y).square().sum()
    return (shift + covariance_x.trace() + covariance_y.trace() - 2 * cross).clamp(min=0)


def wasserstein_1d(x: Tensor, y: Tensor, p: float = 2.0) -> Tensor:
    """p-Wasserstein distance between the empirical laws in each column, exact for sets of different sizes.

    Args:
        x: (N, L), a set of N values in each of L columns.
        y: (M, L).
        p: Order, at least 1.

    Returns:
        (L,) float64.

    >>> wasserstein_1d(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0]]), p=1)
    tensor([1.5000], dtype=torch.float64)
    """
    n, m = len(x), len(y)
    x, y = x.double().sort(dim=0).values, y.double().sort(dim=0).values
    # Both quantile functions are constant between neighbours of the merged levels {i / n} and {j / m}; in
    # units of
    # 1 / (n m) the levels are whole numbers, so the steps are exact.
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).sort().values.to(x.device)
    width = levels.diff(prepend=levels.new_zeros(1)).double() / (n * m)
    start = levels - levels.diff(prepend=levels.new_zeros(1))
    in_x = (start // m).clamp(max=n - 1)
    in_y = (start // n).clamp(max=m - 1)
    gap = (x[in_x] - y[in_y]).abs() ** p  # (N + M, L)
    return (width[:, None] * gap).sum(0) ** (1 / p)


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 256, p: float = 2.0, seed: int = 0) -> Tensor:
    """Sliced p-Wasserstein distance: the p-mean of `wasserstein_1d` over random directions.

    Args:
        x: (N, D).
        y: (M, D).
        directions: Number of directions.
        p: Order, at least 1.
        seed: Seed of the directions: the same for every call, so that values compare.

    Returns:
        A float64 scalar in the units of the data.

    Raises:
        ValueError: the sets are not (N, D) and (M, D) with two rows at least.

    >>> x = torch.zeros(2, 3)
    >>> round(sliced_wasserstein(x, x + 1, directions=20000).item(), 2)  # |shift| / sqrt(D) = 1
    1.0
    """
    check_sets(x, y)
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64)
    lines = (lines / lines.norm(dim=0)).to(x.device)
    distance = wasserstein_1d(x.double() @ lines, y.double() @ lines, p)
    return (distance**p).mean() ** (1 / p)


def _covariance(x: Tensor) -> Tensor:
    centered = x - x.mean(0)
    return centered.T @ centered / (len(x) - 1)


def check_sets(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"need two sets (N, D) and (M, D) of two vectors at least, got {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
