"""Denoising score matching and flow matching: the squared error of the network's output F.

* EDM (Karras et al. 2022, arXiv 2206.00364): F with unit weight *is* the loss lambda(s) |D - x|^2 with
  lambda = (s^2 + sd^2) / (s sd)^2, since lambda c_out^2 = 1; the target is written without dividing by the
  noise.
* EDM2 (Karras et al. 2023, arXiv 2312.02696): the same over a learned variance of each noise level.
* flow matching (Lipman et al. 2022, arXiv 2210.02747): the velocity e - x.
"""

from typing import Literal

from torch import Tensor

from zoo.flow.batch import FlowBatch
from zoo.flow.preconditioned_network import PreconditionedNetwork
from zoo.flow.weighting import squared_error


def diffusion_error(
    model: PreconditionedNetwork,
    batch: FlowBatch,
    t: Tensor,
    space: Literal["output", "data", "velocity"] = "output",
) -> Tensor:
    """The mean square error of each item (B,): F against the output at which the model would be right.

    Args:
        model: The network with its preconditioning on a path.
        batch: Data, noise and labels.
        t: Times (B,) of the path.
        space: Where errors are squared: in the network's output, in the denoised data or in the velocity.
    """
    path, preconditioning = model.path, model.preconditioning
    z = path.interpolate(batch.x, batch.noise, t)
    target = preconditioning.target(path, batch.x, batch.noise, t)
    error = squared_error(model.output(z, t, None, batch.label), target, "mean")  # (B,)
    if space == "output":
        return error
    _, out = (preconditioning.denoiser if space == "data" else preconditioning.velocity)(path, t)
    return error if out is None else error * out.square()
