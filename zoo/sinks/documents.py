"""The records of a batch, cut into its documents: what the detector looks at one by one."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.sinks.attention import AttentionRecord
from zoo.sinks.states import States


@dataclass
class Document:
    """Records of one document: n tokens, C candidates that are among them, A attention layers."""

    sequence: int
    number: int  # of the document in its sequence
    places: Tensor  # (n,)
    candidates: Tensor  # (C,) positions in the document
    norms: Tensor  # (L + 1, n)
    cosines: Tensor  # (L + 1, C, n)
    mlp: dict[str, Tensor]  # norms (L, n), cosines (L, C, n), before (L, C, n)
    attention_norms: Tensor | None  # (L, n)
    attention_layers: dict[int, int]  # layer -> index of scores
    scores: Tensor | None  # (A, H, n)
    even: Tensor | None  # (A, H, n)


class RecordsByDocument:
    """All records on the CPU in float64, from which documents are cut.

    Args:
        states: What was recorded of the states.
        attention: What was recorded of attention, if anything was.
    """

    def __init__(self, states: States, attention: AttentionRecord | None) -> None:
        def cpu(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.cpu().double()

        self.candidates = states.candidates.cpu()
        self.documents, self.valid = states.documents.cpu(), states.valid.cpu()
        self.norms, self.cosines = cpu(states.norms), cpu(states.cosines)
        self.mlp = {
            name: cpu(value)
            for name, value in (
                ("norms", states.mlp_norms),
                ("cosines", states.mlp_cosines),
                ("before", states.mlp_cosines_before),
            )
            if value is not None
        }
        self.attention_norms = cpu(states.attention_norms)
        self.layers = {} if attention is None else {int(layer): n for n, layer in enumerate(attention.layers)}
        self.scores = None if attention is None else cpu(attention.scores)
        self.even = None if attention is None else cpu(attention.uniform)

    def __iter__(self) -> Iterator[Document]:
        for sequence, (row, valid) in enumerate(zip(self.documents, self.valid, strict=True)):
            for number, document in enumerate(row[valid].unique_consecutive()):
                yield self._document(sequence, number, ((row == document) & valid).nonzero()[:, 0])

    def _document(self, sequence: int, number: int, places: Tensor) -> Document:
        position = {int(place): n for n, place in enumerate(places)}
        slots = [n for n, place in enumerate(self.candidates[sequence].tolist()) if place in position]
        candidates = [position[int(self.candidates[sequence, slot])] for slot in slots]

        def cut(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            value = value[:, sequence][..., places]
            return value[:, slots] if value.ndim == 3 else value

        return Document(
            sequence,
            number,
            places,
            torch.tensor(candidates, dtype=torch.int64),
            cut(self.norms),  # type: ignore[arg-type]
            cut(self.cosines),  # type: ignore[arg-type]
            {name: cut(value) for name, value in self.mlp.items()},  # type: ignore[misc]
            cut(self.attention_norms),
            self.layers,
            None if self.scores is None else self.scores[:, sequence][..., places],
            None if self.even is None else self.even[:, sequence][..., places],
        )
