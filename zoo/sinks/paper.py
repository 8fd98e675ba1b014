"""The detector of the paper's code, as it is: for results that can be held against its published files.

"On the Existence and Behaviour of Secondary Attention Sinks" (arXiv 2512.22213), `src/hidden_state_base.py`
of its repository. What `zoo.sinks.detect` mends, and is kept here: the last state is that after the
final norm, so a primary sink may seem to end there; the embedding is left out; the primary sink is
whichever of the first tokens has the largest norm, if it stands out or not; the sign of the cosine is
dropped; attention is not looked at; a lifetime counts layers with gaps; a sink is primary from L - 15 layers
on, so no model of 20 layers or less has a secondary one.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from zoo.sinks.states import States

Label = Literal["bos_sink", "secondary", "noise"]


@dataclass(frozen=True)
class PaperSink:
    """A token that the paper's detector lists.

    Attributes:
        sequence: Its sequence in the batch.
        place: Its place in the sequence.
        label: As in the paper's files; "cliff" is "secondary" in the older ones.
        l_start: The first layer with |cosine| above .9.
        lifetime: How many there are.
        layers: All of them.
    """

    sequence: int
    place: int
    label: Label
    l_start: int
    lifetime: int
    layers: tuple[int, ...]


def paper_label(lifetime: int, layers: int) -> Label:
    """The kind of a sink by its lifetime in a model of so many layers.

    >>> [paper_label(life, 48) for life in (43, 33, 32, 5, 4)]
    ['bos_sink', 'bos_sink', 'secondary', 'secondary', 'noise']
    """
    if lifetime >= layers - 15:
        return "bos_sink"
    return "secondary" if lifetime > 4 else "noise"


def paper_detect(states: States, first: int = 3) -> list[PaperSink]:
    """What the paper's detector lists of a batch without padding, the primary sink of each sequence first.

    Args:
        states: What was recorded; where it has states after the final norm they stand for the last layer's.
        first: How many first tokens may be the primary sink: 3 with a chat template, 2 without.

    Raises:
        ValueError: sequences are padded or packed, or ``first`` is none of 1, 2, 3.
    """
    if not bool(states.valid.all()) or bool((states.documents != states.documents[:, :1]).any()):
        raise ValueError("the paper's detector takes whole sequences: give them without padding or packing")
    if first not in (1, 2, 3):
        raise ValueError(f"first must be 1, 2 or 3, got {first}")
    norms, cosines = states.norms[1:].clone(), states.cosines[1:].clone()
    if states.final_norms is not None and states.final_cosines is not None:
        norms[-1], cosines[-1] = states.final_norms, states.final_cosines
    norms, cosines = norms.cpu(), cosines.cpu()
    found: list[PaperSink] = []
    for sequence in range(norms.shape[1]):
        primary = int(norms[:, sequence, :first].mean(0).argmax())
        change = norms[:, sequence, primary].diff()
        start = int(change.argmax()) + 1
        end = int(change[start:].argmin()) + start + 1 if start < len(change) else len(change) + 1
        found.append(_sink(sequence, primary, list(range(start, end)), len(norms)))
        aligned: Tensor = cosines[start:end, sequence, primary].abs() > 0.9  # (layers, T)
        for place in range(primary + 1, norms.shape[2]):
            layers = [start + int(n) for n in aligned[:, place].nonzero()[:, 0]]
            if layers:
                found.append(_sink(sequence, place, layers, len(norms)))
    return found


def _sink(sequence: int, place: int, layers: list[int], depth: int) -> PaperSink:
    label = paper_label(len(layers), depth)
    return PaperSink(sequence, place, label, layers[0], len(layers), tuple(layers))
