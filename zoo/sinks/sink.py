"""What a sink is, and what makes one."""

import math
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["primary", "secondary", "noise", "aligned_only", "opposed"]


@dataclass(frozen=True)
class Thresholds:
    """What makes a sink.

    Args:
        norm_ratio: A primary sink's norm is at least this many times the median of its document.
        cosine: A sink's cosine with the direction of the primary sinks is above this.
        attention: Some head gives a sink more than this many times what even attention would, or more than
            half. Sinks share what attention has to give, so no fixed share would do.
        writer_cosine: What a feed-forward network adds makes (ends) a sink if its cosine with that direction
            is above this (below its negative) and its norm more than half the state's.
        gap: Layers in a row that may be missing in the life of a sink.
        min_life: Share of the layers that a secondary sink lives at least; two layers in any case.
    """

    norm_ratio: float = 10.0
    cosine: float = 0.9
    attention: float = 3.0
    writer_cosine: float = 0.98
    gap: int = 0
    min_life: float = 0.1

    def __post_init__(self) -> None:
        for name in ("cosine", "writer_cosine", "min_life"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("norm_ratio", "attention"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 1):
                raise ValueError(f"{name} must be above 1, got {getattr(self, name)}")
        if self.gap < 0:
            raise ValueError(f"gap must be 0 or more, got {self.gap}")


@dataclass(frozen=True)
class Sink:
    """A token that is a sink. Layer l means the state that layer l returns; -1 is the embedding.

    Attributes:
        sequence: Its sequence in the batch.
        document: Its document in the sequence.
        position: Its place in the document, from 0.
        place: Its place in the sequence.
        kind: "primary"; "secondary", born at least two layers later; "noise", which lives too briefly;
            "aligned_only", which no head attends to; "opposed", which points the other way.
        start: The first layer.
        end: The last layer.
        lifetime: How many layers.
        norm: ||h|| at its first layer.
        peak_ratio: The largest norm over the median of its document, in its life.
        cosine: Mean cosine with the direction of the primary sinks, in its life.
        attention: Mean score over heads and layers of its life; None if no layer says.
        max_attention: The largest score of a head; None if no layer says.
        max_attention_at: Layer and head of that.
        creator: The layer whose feed-forward network wrote it; None if none did alone.
        creator_cosine: Cosine of what that added with the direction.
        creator_share: Norm of what that added over the state's.
        attention_share: Norm of what attention added over the state's, at the first layer.
        remover: The layer whose feed-forward network ended it; None if none did alone.
        token: Id of the token, where it is known.
        text: The token in writing, where it is known.
        curve: ||h|| at every layer, from the embedding on.
    """

    sequence: int
    document: int
    position: int
    place: int
    kind: Kind
    start: int
    end: int
    lifetime: int
    norm: float
    peak_ratio: float
    cosine: float
    attention: float | None = None
    max_attention: float | None = None
    max_attention_at: tuple[int, int] | None = None
    creator: int | None = None
    creator_cosine: float | None = None
    creator_share: float | None = None
    attention_share: float | None = None
    remover: int | None = None
    token: int | None = None
    text: str | None = None
    curve: list[float] = field(default_factory=list, repr=False)
