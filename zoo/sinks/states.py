"""Norms and directions of the hidden states of all layers, taken while a model runs; the states are not kept.

A sink is a token whose state points where the state of the primary sink points. Which token that is shows
only as the layers go by, so a few candidates of each sequence are followed: its first tokens, and tokens
whose norm stands out, as they appear. Of every layer's output h (before any norm, the last layer's too)
`States` keeps ||h_t|| and cos(h_t, h_c) for all tokens t and candidates c, and of what attention and the
feed-forward network added their norms and cosines: (3 + 4 C) numbers a token and layer instead of 3 D.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.attention.layers import Layer, attention_output, feed_forward_output

FIRST = 3  # first tokens of a document that are followed from the start, as in the official code
NEW = 5  # candidates beside these, for each sequence
_SPREAD = 2**16  # entries of a state that its median is taken of
_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "layer_norm")


@dataclass(frozen=True, eq=False)
class States:
    """What is kept of the states. B sequences, T tokens, L layers, C candidates.

    Index s of the first dimension of `norms` and `cosines` is the input of layer s, so s = 0 is the embedding
    and s = L what the last layer returns. Of `mlp` and `attention`, index l is layer l.

    Attributes:
        valid: (B, T) bool: tokens that are not padding.
        documents: (B, T) int64 ids of packed documents.
        candidates: (B, C) int64 places of the candidates, -1 where there is none.
        norms: (L + 1, B, T): ||h||.
        cosines: (L + 1, B, C, T): cos(h_t, h_c).
        final_norms: (B, T) after the final norm; None where the model has none.
        final_cosines: (B, C, T) likewise.
        mlp_norms: (L, B, T): norm of what the feed-forward network added.
        mlp_cosines: (L, B, C, T): its cosine with the candidates' states that the layer returns.
        mlp_cosines_before: (L, B, C, T): its cosine with the candidates' states that the layer was given.
        attention_norms: (L, B, T): norm of what attention added.
        attention_cosines: (L, B, C, T): like ``mlp_cosines``.
        largest: (L + 1, B): the largest absolute entry of a state.
        medians: (L + 1, B): the median absolute entry, of up to 131,072 that lie evenly.
        largest_at: (L + 1, B, 2) int64: token and dimension of the largest.
        nonfinite: (L + 1, B) int64: tokens whose state has an entry that is infinite or no number.
    """

    valid: Tensor
    documents: Tensor
    candidates: Tensor
    norms: Tensor
    cosines: Tensor
    final_norms: Tensor | None = None
    final_cosines: Tensor | None = None
    mlp_norms: Tensor | None = None
    mlp_cosines: Tensor | None = None
    mlp_cosines_before: Tensor | None = None
    attention_norms: Tensor | None = None
    attention_cosines: Tensor | None = None
    largest: Tensor | None = None
    medians: Tensor | None = None
    largest_at: Tensor | None = None
    nonfinite: Tensor | None = None

    @property
    def layers(self) -> int:
        """L."""
        return len(self.norms) - 1


class StateRecorder:
    """Follows the states of a stack of layers through one forward.

    Args:
        layers: The stack (`zoo.attention.find_stack`).
        valid: (B, T) bool: tokens that are not padding; None for all that the layers are given.
        documents: (B, T) int64 ids of packed documents, equal for the tokens of one; None for one a sequence.
        final_norm: The module after the last layer; None for none.
        norm_ratio: A token is followed from where its norm is this many times the median of its sequence.

    >>> from zoo.attention import find_stack
    >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    >>> recorder = StateRecorder(find_stack(model))
    >>> with recorder.attached():
    ...     _ = model(torch.randn(1, 5, 8))
    >>> recorder.states().norms.shape
    torch.Size([3, 1, 5])
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        valid: Tensor | None = None,
        documents: Tensor | None = None,
        final_norm: nn.Module | None = None,
        norm_ratio: float = 10.0,
    ) -> None:
        self.layers, self.final_norm, self.norm_ratio = layers, final_norm, norm_ratio
        self._given = (valid, documents)
        self.valid, self.documents, self.candidates = torch.empty(0), torch.empty(0), torch.empty(0)
        self.records: list[dict[str, Tensor]] = []
        self.parts: list[dict[str, Tensor]] = []
        self.final: dict[str, Tensor] = {}
        self._added: dict[str, Tensor] = {}
        self._before: Tensor | None = None  # unit states of the candidates, as the layer was given them

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block, the next forward is recorded."""
        handles = [self.layers[0].module.register_forward_pre_hook(self._enter, with_kwargs=True)]
        for layer in self.layers:
            handles.append(layer.module.register_forward_hook(self._leave(layer)))
            handles.append(feed_forward_output(layer.module).register_forward_hook(self._keep("mlp", layer)))
            if (module := attention_output(layer)) is not None:
                handles.append(module.register_forward_hook(self._keep("attention", layer)))
        if self.final_norm is not None:
            handles.append(self.final_norm.register_forward_hook(self._leave_norm))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def states(self) -> States:
        """What was recorded.

        Raises:
            RuntimeError: not every layer ran once.
        """
        if len(self.records) != len(self.layers) + 1:
            raise RuntimeError(
                f"{len(self.layers)} layers were to run once each, but {max(0, len(self.records) - 1)} did: "
                "does the forward run the whole stack once?"
            )
        whole = _stacked(self.records)
        parts = _stacked(self.parts) if self._complete() else {}
        return States(self.valid, self.documents, self.candidates, **whole, **parts, **self.final)

    def _complete(self) -> bool:
        return bool(self.parts) and all(part.keys() == self.parts[0].keys() for part in self.parts)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        self.begin(self._tokens_first(hidden, self.layers[0]))
        self._record(self._batch_first(hidden, self.layers[0]))

    def begin(self, hidden: Tensor) -> None:
        """Makes ready for a forward of tokens with such states (B, T, D)."""
        valid, documents = self._given
        if valid is None:
            valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        self.valid = valid
        self.documents = torch.zeros_like(valid, dtype=torch.int64) if documents is None else documents
        self.candidates = first_tokens(self.valid, self.documents)
        self.records, self.parts, self.final, self._added, self._before = [], [], {}, {}, None

    def _leave(self, layer: Layer) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._record(self._batch_first(output, layer))

        return hook

    def _leave_norm(self, module: nn.Module, args: Any, output: Any) -> None:
        unit, norms = _unit(self._batch_first(output, self.layers[-1]))
        self.final = {"final_norms": norms, "final_cosines": self._cosines(self._pick(unit), unit)}

    def _keep(self, name: str, layer: Layer) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._added[name] = self._batch_first(output, layer)

        return hook

    def _batch_first(self, output: Any, layer: Layer) -> Tensor:
        """The states (B, T, D) among what a module returned."""
        hidden = self._tokens_first(output, layer)
        shape = tuple(self.valid.shape)
        hidden = (
            hidden.reshape(*shape, -1) if hidden.ndim == 2 and len(hidden) == shape[0] * shape[1] else hidden
        )
        if hidden.ndim != 3 or hidden.shape[:2] != shape:
            raise ValueError(f"{layer.name}: expected states of {shape} tokens, got {tuple(hidden.shape)}")
        return hidden.detach()

    def _tokens_first(self, output: Any, layer: Layer) -> Tensor:
        hidden = output[0] if isinstance(output, tuple | list) else output
        return hidden if getattr(layer.attention, "batch_first", True) else hidden.transpose(0, 1)

    def _record(self, hidden: Tensor) -> None:
        unit, norms = _unit(hidden)
        home = self.valid.device  # of the first layer; a device map may put others elsewhere
        self._follow(norms.to(home))
        picked = self._pick(unit)
        valid = self.valid.to(hidden.device)
        values = hidden.abs().where(valid[..., None], 0).flatten(1)
        largest, at = values.max(-1)
        spread = hidden.abs().float().where(valid[..., None], torch.nan).flatten(1)
        spread = spread[:, :: max(1, spread.shape[1] // _SPREAD)]
        self.records.append(
            {
                "norms": norms,
                "cosines": self._cosines(picked, unit),
                "largest": largest.float(),
                "medians": spread.nanmedian(-1).values,
                "nonfinite": (~norms.isfinite() & valid).sum(-1),
                "largest_at": torch.stack([at // hidden.shape[2], at % hidden.shape[2]], -1),
            }
        )
        if len(self.records) > 1:
            part: dict[str, Tensor] = {}
            for name, added in self._added.items():
                direction, part[f"{name}_norms"] = _unit(added)
                part[f"{name}_cosines"] = self._cosines(picked, direction)
                if name == "mlp" and self._before is not None:
                    part["mlp_cosines_before"] = self._cosines(self._before, direction)
            self.parts.append(part)
        self._before, self._added = picked, {}
        for kept in (self.records, self.parts):
            kept[-1:] = [{name: value.to(home) for name, value in record.items()} for record in kept[-1:]]

    def _follow(self, norms: Tensor) -> None:
        """Gives free places to tokens whose norms stand out, the largest first."""
        medians = norms.where(self.valid, torch.nan).nanmedian(-1, keepdim=True).values
        stands_out = (norms >= self.norm_ratio * medians) & self.valid
        taken = (self.candidates[..., None] == torch.arange(norms.shape[1], device=norms.device)).any(1)
        ranked = norms.where(stands_out & ~taken, -1.0).topk(min(NEW, norms.shape[1]), dim=1)
        free = self.candidates < 0
        place = free.cumsum(1) - 1  # number of each free place
        chosen = ranked.indices.where(ranked.values >= 0, -1)
        chosen = F.pad(chosen, (0, max(0, self.candidates.shape[1] - chosen.shape[1])), value=-1)
        self.candidates = self.candidates.where(~free, chosen.gather(1, place.clamp(min=0)))

    def _pick(self, unit: Tensor) -> Tensor:
        """Unit states of the candidates (B, C, D); 0 where there is none."""
        candidates = self.candidates.to(unit.device)[..., None]
        index = candidates.clamp(min=0).expand(-1, -1, unit.shape[-1])
        return unit.gather(1, index).where(candidates >= 0, 0)

    def _cosines(self, picked: Tensor, unit: Tensor) -> Tensor:
        return picked.to(unit.device) @ unit.transpose(1, 2)  # (B, C, T)


def first_tokens(valid: Tensor, documents: Tensor) -> Tensor:
    """Places of the first `FIRST` tokens of every document, and `NEW` free ones (B, C); -1 for none."""
    rows = []
    for row, ids in zip(valid.tolist(), documents.tolist(), strict=True):
        seen: dict[int, int] = {}
        found = []
        for place, (real, document) in enumerate(zip(row, ids, strict=True)):
            if real and seen.setdefault(document, 0) < FIRST:
                seen[document] += 1
                found.append(place)
        rows.append(found)
    width = max(map(len, rows), default=0) + NEW
    return torch.tensor([found + [-1] * (width - len(found)) for found in rows], device=valid.device)


def states_of(hidden: Tensor, norm_ratio: float = 10.0) -> States:
    """States from hidden states that are at hand: the inputs of all layers and the output of the last.

    Args:
        hidden: (L + 1, B, T, D).
        norm_ratio: As in `StateRecorder`.
    """
    recorder = StateRecorder([], norm_ratio=norm_ratio)
    recorder.begin(hidden[0])
    for state in hidden:
        recorder._record(state)
    recorder.parts = []
    recorder.layers = [None] * (len(hidden) - 1)  # type: ignore[list-item]
    return recorder.states()


def find_final_norm(model: nn.Module, layers: Sequence[Layer]) -> nn.Module | None:
    """The norm after the last layer of a stack: beside the stack in its parent, by its usual names."""
    stack = layers[0].name.rpartition(".")[0]
    parent = model.get_submodule(stack.rpartition(".")[0])
    for name in _FINAL_NORMS:
        if isinstance(found := getattr(parent, name, None), nn.Module):
            return found
    return None


def _stacked(records: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([record[name] for record in records]) for name in records[0]}


def _unit(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (B, T, D) and norms (B, T) in float32, or float64 of float64."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    norms = torch.linalg.vector_norm(hidden, dim=-1)
    return hidden / norms.clamp(min=torch.finfo(hidden.dtype).tiny)[..., None], norms
