"""From diffusion to few steps: paths, teachers, mid-training, consistency, mean flow, closed forms."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.flow.analytic import Gaussian as Gaussian
    from zoo.flow.analytic import GaussianMixture as GaussianMixture
    from zoo.flow.batch import FlowBatch as FlowBatch
    from zoo.flow.cmt import TrajectoryDraws as TrajectoryDraws
    from zoo.flow.cmt_module import CMT as CMT
    from zoo.flow.consistency import sample_consistency as sample_consistency
    from zoo.flow.consistency_module import ConsistencyModel as ConsistencyModel
    from zoo.flow.consistency_objectives import ContinuousConsistency as ContinuousConsistency
    from zoo.flow.consistency_objectives import DiscreteConsistency as DiscreteConsistency
    from zoo.flow.consistency_times import GridLevels as GridLevels
    from zoo.flow.consistency_times import RatioLevels as RatioLevels
    from zoo.flow.diffusion_module import Diffusion as Diffusion
    from zoo.flow.distances import PseudoHuber as PseudoHuber
    from zoo.flow.distances import RandomFeatureDistance as RandomFeatureDistance
    from zoo.flow.distances import SquaredDistance as SquaredDistance
    from zoo.flow.guidance import Guided as Guided
    from zoo.flow.handover import hand_over as hand_over
    from zoo.flow.improved_mean_flow import GuidanceDraws as GuidanceDraws
    from zoo.flow.improved_mean_flow import GuidedMeanFlowSampler as GuidedMeanFlowSampler
    from zoo.flow.improved_mean_flow import improved_mean_flow_error as improved_mean_flow_error
    from zoo.flow.improved_mean_flow_module import ImprovedMeanFlow as ImprovedMeanFlow
    from zoo.flow.mean_flow import Guidance as Guidance
    from zoo.flow.mean_flow import MeanFlowTarget as MeanFlowTarget
    from zoo.flow.mean_flow import guided_velocity as guided_velocity
    from zoo.flow.mean_flow import mean_flow_error as mean_flow_error
    from zoo.flow.mean_flow import mean_flow_target as mean_flow_target
    from zoo.flow.mean_flow_module import MeanFlow as MeanFlow
    from zoo.flow.mean_flow_times import MeanFlowTimes as MeanFlowTimes
    from zoo.flow.networks.dhariwal_unet import DhariwalUNet as DhariwalUNet
    from zoo.flow.networks.dit import DiT as DiT
    from zoo.flow.networks.edm2_unet import EDM2UNet as EDM2UNet
    from zoo.flow.networks.mlp import MLP as MLP
    from zoo.flow.networks.song_unet import SongUNet as SongUNet
    from zoo.flow.noise_levels import LogNormalLevels as LogNormalLevels
    from zoo.flow.noise_levels import UniformLevels as UniformLevels
    from zoo.flow.paths import LinearPath as LinearPath
    from zoo.flow.paths import TrigonometricPath as TrigonometricPath
    from zoo.flow.paths import VarianceExplodingPath as VarianceExplodingPath
    from zoo.flow.paths import bridge as bridge
    from zoo.flow.preconditioned_network import PreconditionedNetwork as PreconditionedNetwork
    from zoo.flow.preconditioning import DataPrediction as DataPrediction
    from zoo.flow.preconditioning import EDMPreconditioning as EDMPreconditioning
    from zoo.flow.preconditioning import VelocityPrediction as VelocityPrediction
    from zoo.flow.samplers import ConsistencySampler as ConsistencySampler
    from zoo.flow.samplers import MeanFlowSampler as MeanFlowSampler
    from zoo.flow.samplers import ODESampler as ODESampler
    from zoo.flow.samplers import sample_mean_flow as sample_mean_flow
    from zoo.flow.solvers import DPMSolver as DPMSolver
    from zoo.flow.solvers import Euler as Euler
    from zoo.flow.solvers import Heun as Heun
    from zoo.flow.solvers import MeanFlowSteps as MeanFlowSteps
    from zoo.flow.solvers import Trajectory as Trajectory
    from zoo.flow.solvers import integrate as integrate
    from zoo.flow.solvers import solve as solve
    from zoo.flow.tangent import FiniteDifference as FiniteDifference
    from zoo.flow.tangent import total_derivative as total_derivative
    from zoo.flow.teacher import Teacher as Teacher
    from zoo.flow.time_grids import EvenGrid as EvenGrid
    from zoo.flow.time_grids import KarrasGrid as KarrasGrid
    from zoo.flow.time_grids import LogGrid as LogGrid
    from zoo.flow.uncertainty import LogVariance as LogVariance
    from zoo.flow.weighting import AdaptiveWeighting as AdaptiveWeighting
    from zoo.flow.weighting import adaptive as adaptive

__getattr__, __dir__, __all__ = attach(__name__, __file__)
