"""Ramps and plateaus as the builders put them together."""

from zoo.schedules.segments import Inclusive, Segment


def warmup_segments(
    length: int, low: float, inclusive: Inclusive, room: int, start: int = 0
) -> list[Segment]:
    """A linear warm-up of ``length`` updates from ``low``; none if that is 0."""
    if length < 0 or length > room:
        raise ValueError(
            f"a warm-up of {length} updates does not fit into the {room} updates from update {start}"
        )
    if not 0 <= low <= 1:
        raise ValueError(f"warmup_start must be a factor between 0 and 1, got {low}")
    return [Segment("warmup", start, start + length, low, 1.0, inclusive=inclusive)] if length else []


def stable_segments(start: int, end: int) -> list[Segment]:
    """Updates at the peak; none if there is no room."""
    return [Segment("stable", start, end)] if end > start else []
