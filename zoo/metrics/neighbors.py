"""What nearest neighbors tell of generated samples: are all modes covered, are training items copied?

Coverage: Naeem et al. 2020, arXiv 2002.09797, equation 4. Memorization: the data-copying idea of Meehan et
al. 2020, arXiv 2004.05675, section 2 (their Delta before standardization, as a probability).
"""

import torch
from torch import Tensor


def coverage(real: Tensor, samples: Tensor, k: int = 5) -> Tensor:
    """Share of the real items whose ball, out to their k-th nearest real neighbor, holds at least one sample.

    Args:
        real: (N, D), N > k.
        samples: (M, D).
        k: Neighbors that set a ball's radius.

    Returns:
        A scalar in [0, 1]: 1 when every part of the real law is met. Samples of the real law itself reach
        less than 1 when there are few of them: put the value of real samples beside it.

    Raises:
        ValueError: there are too few real items for k neighbors.

    >>> real = torch.arange(6.0)[:, None]
    >>> coverage(real, real[:2] + 0.1, k=1)  # balls of radius 1: the samples lie in those of 0, 1 and 2
    tensor(0.5000)
    """
    if len(real) <= k:
        raise ValueError(f"k={k} neighbors need more than {k} real items, got {len(real)}")
    # Without the matrix-product shortcut, whose rounding breaks ties between equal distances.
    exact = "donot_use_mm_for_euclid_dist"
    radius = (
        torch.cdist(real, real, compute_mode=exact).kthvalue(k + 1, dim=1).values
    )  # the nearest is the item
    nearest = torch.cdist(real, samples, compute_mode=exact).amin(1)
    return (nearest <= radius).float().mean()


def memorization(train: Tensor, held_out: Tensor, samples: Tensor) -> Tensor:
    """Probability that a sample lies nearer to the training set than a held-out item does; ties count half.

    Args:
        train: (N, D).
        held_out: (H, D), real items that were not trained on.
        samples: (M, D).

    Returns:
        A scalar in [0, 1]: about 0.5 for new draws of the real law, 1 for copies of training items, less than
        0.5 for samples that stray from the data.

    >>> train = torch.tensor([[0.0], [10.0]])
    >>> held_out, samples = torch.tensor([[1.0], [8.0]]), torch.tensor([[0.0], [11.5]])
    >>> memorization(train, held_out, samples)  # distances 1 and 2 against 0 and 1.5
    tensor(0.7500)
    """
    of_samples = torch.cdist(samples, train).amin(1)
    of_held_out = torch.cdist(held_out, train).amin(1)
    difference = of_held_out[None, :] - of_samples[:, None]  # (M, H)
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean()
