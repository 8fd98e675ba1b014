"""The two times of mean flow: t, where the state is, and r <= t, where the step would land.

MeanFlow (Geng et al. 2025, arXiv 2505.13447), section 4.3 and table 1: t and r are logit-normal, and only a
part of the items has r != t; the others train the instantaneous velocity. Two official settings:

* ImageNet (the JAX code; the defaults here): both times from logit-normal(-0.4, 1), sorted, r != t for 25 %.
* CIFAR-10 (the second PyTorch code): t from logit-normal(-0.6, 1.6), r from logit-normal(-4, 1.6), r replaced
  by t for 25 % of the items, and *then* clipped to r <= t. ``MeanFlowTimes(-0.6, 1.6, -4, 1.6, 0.75,
  order="clip")``.

We differ from the official code in how a fixed number of items is chosen: it takes the first items of the
batch, we take the items with the smallest of a further draw, so that shuffled and unshuffled data are treated
alike.
"""

from typing import Literal

import torch
from torch import Tensor

from zoo import rng


class MeanFlowTimes:
    """Draws (t, r) for each item, a pure function of (seed, step, global item index).

    Args:
        t_mean: Mean of logit(t).
        t_std: Standard deviation of logit(t).
        r_mean: Mean of logit(r) before ordering; None takes ``t_mean``.
        r_std: Standard deviation of logit(r) before ordering; None takes ``t_std``.
        prob_r_neq_t: Probability that an item has r != t, in [0, 1].
        fixed_count: Give exactly ``round(prob_r_neq_t * B)`` items of each batch r != t, rather than each by
            its own coin. The step then costs the same every time, but an item's times depend on which others
            are in its batch, and so on the number of processes.
        order: "sort" takes the larger of the two draws as t; "clip" keeps t and lowers r to min(r, t), which
            makes further items r = t.

    >>> t, r = MeanFlowTimes(prob_r_neq_t=0.5)(seed=0, step=0, index=torch.arange(1000))
    >>> bool((r <= t).all()), round((r < t).double().mean().item(), 1)
    (True, 0.5)
    """

    def __init__(
        self,
        t_mean: float = -0.4,
        t_std: float = 1.0,
        r_mean: float | None = None,
        r_std: float | None = None,
        prob_r_neq_t: float = 0.25,
        fixed_count: bool = False,
        order: Literal["sort", "clip"] = "sort",
    ) -> None:
        if not 0 <= prob_r_neq_t <= 1:
            raise ValueError(f"prob_r_neq_t must be in [0, 1], got {prob_r_neq_t}")
        for name, std in (("t_std", t_std), ("r_std", r_std)):
            if std is not None and not std >= 0:
                raise ValueError(f"{name} must be at least 0 (a standard deviation of logits), got {std}")
        if order not in ("sort", "clip"):
            raise ValueError(f"order must be 'sort' or 'clip', got {order!r}")
        self.t_mean, self.t_std = t_mean, t_std
        self.r_mean = t_mean if r_mean is None else r_mean
        self.r_std = t_std if r_std is None else r_std
        self.prob_r_neq_t, self.fixed_count, self.order = prob_r_neq_t, fixed_count, order

    def __call__(self, seed: int, step: int, index: Tensor, name: str = "") -> tuple[Tensor, Tensor]:
        """Draws the times of a batch.

        Args:
            seed: The run's seed.
            step: The optimizer step, or any other counter.
            index: Global item indices (B,). On the CPU the draw costs no host sync, and neither does counting
                the items with r != t.
            name: Prefix of the draws' names; another prefix gives independent draws.

        Returns:
            ``(t, r)``, each (B,) float64 with 0 <= r <= t <= 1, on the device of ``index``.
        """
        logits = rng.normal(seed, step, index, (2,), name + "times", torch.float64)  # (B, 2)
        t = _logistic(self.t_mean + self.t_std * logits[:, 0])
        r = _logistic(self.r_mean + self.r_std * logits[:, 1])
        if self.order == "sort":
            t, r = torch.maximum(t, r), torch.minimum(t, r)
        else:
            r = torch.minimum(t, r)
        coin = rng.uniform(seed, step, index, (), name + "share", torch.float64)  # (B,)
        if self.fixed_count:
            # Ties are impossible in practice: 53 random bits each.
            apart = coin.argsort().argsort() < round(self.prob_r_neq_t * len(index))
        else:
            apart = coin < self.prob_r_neq_t
        return t, torch.where(apart, r, t)


def _logistic(logits: Tensor) -> Tensor:
    """The sigmoid; `torch.sigmoid` on CPUs rounds by an item's place in its batch, `torch.exp` does not."""
    return 1 / (1 + (-logits).exp())
