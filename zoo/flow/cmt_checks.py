"""Checks of `CMT`'s arguments and data, of one against the other."""

from typing import Any

from zoo.flow.samplers import ConsistencySampler


def check_datamodule(datamodule: Any) -> None:
    """Refuses a datamodule without stored trajectories, where there is no teacher.

    Raises:
        ValueError: there is a datamodule, and it has none.
    """
    if datamodule is not None:
        raise ValueError(
            f"CMT has no teacher, and {type(datamodule).__name__} has no stored trajectories: give teacher, "
            "or the data Trajectories"
        )


def check_student_arguments(
    two_times: bool, distance: Any, sampler: ConsistencySampler, predict: str, teacher: Any
) -> None:
    """Refuses arguments of `CMT` that are of the other kind of student, or need a teacher.

    Raises:
        ValueError: a distance or a boundary for a mean-flow student; an unknown ``predict``, or trajectories
            without a teacher.
    """
    if two_times and distance is not None:
        raise ValueError(
            "distance is for consistency students; a network with two time inputs learns mean velocities by "
            "the squared error: leave distance out, or build the network with two_times=False"
        )
    if two_times and sampler.boundary is not None:
        raise ValueError(
            "sampler.boundary is for consistency students, and the network has two time inputs: leave it out"
        )
    if predict not in ("samples", "trajectories"):
        raise ValueError(f"predict must be 'samples' or 'trajectories', got {predict!r}")
    if predict == "trajectories" and teacher is None:
        raise ValueError("predict='trajectories' solves the teacher's flow: give teacher")
