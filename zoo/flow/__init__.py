"""Few-step generation: mean flow, its networks, and laws whose flows are known in closed form."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.flow.analytic import Gaussian as Gaussian
    from zoo.flow.analytic import GaussianMixture as GaussianMixture
    from zoo.flow.mean_flow import adaptive as adaptive
    from zoo.flow.mean_flow import guided_velocity as guided_velocity
    from zoo.flow.mean_flow import mean_flow_error as mean_flow_error
    from zoo.flow.mean_flow import mean_flow_target as mean_flow_target
    from zoo.flow.mean_flow_module import MeanFlow as MeanFlow
    from zoo.flow.networks.dit import DiT as DiT
    from zoo.flow.networks.mlp import MLP as MLP
    from zoo.flow.paths import LinearPath as LinearPath
    from zoo.flow.paths import VarianceExplodingPath as VarianceExplodingPath
    from zoo.flow.samplers import sample_mean_flow as sample_mean_flow
    from zoo.flow.tangent import total_derivative as total_derivative
    from zoo.flow.times import MeanFlowTimes as MeanFlowTimes

__getattr__, __dir__, __all__ = attach(__name__, __file__)
