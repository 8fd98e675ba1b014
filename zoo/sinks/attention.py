"""What all attention layers did in one forward, reduced to what the detector and the report ask for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.attention.call import AttentionCall
from zoo.attention.layers import Layer
from zoo.attention.sampling import stratified_rows
from zoo.attention.statistics import attention_statistics

MIN_QUERIES = 8  # a key that fewer rows see has no score


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """Attention of A layers with H heads (H_kv of values) over T tokens of B sequences.

    Attributes:
        layers: (A,) int64: places of the layers in their stack.
        scores: (A, B, H, T): mean attention of each token over the rows that see it; NaN where fewer than 8.
        uniform: (A, B, H, T): what the scores would be if each row attended evenly.
        entropy: (A, B, H): mean over rows, in nats.
        relative_entropy: (A, B, H): mean of entropy / log(visible keys).
        max_logits: (A, B, H).
        first_token: (A, B, H): mean weight on the first token of the document.
        no_op: (A, B, H): mean weight of attending to nothing.
        value_norms: (A, B, H_kv, T).
        gates: (A, 2): mean of the gates of gated attention, and the share below .1; NaN without gates.
    """

    layers: Tensor
    scores: Tensor
    uniform: Tensor
    entropy: Tensor
    relative_entropy: Tensor
    max_logits: Tensor
    first_token: Tensor
    no_op: Tensor
    value_norms: Tensor
    gates: Tensor


class AttentionRecorder:
    """A hook for `zoo.attention.watch_attention` that reduces each call at once.

    Args:
        layers: The stack; calls of other modules are left out.
        valid: (B, T) bool: tokens that are not padding; None for all.
        documents: (B, T) ids of packed documents; None for one a sequence.
        queries: Rows that are looked at, drawn evenly; None for all.
        seed: Seed of the draw.
        step: Number of the draw.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        valid: Tensor | None = None,
        documents: Tensor | None = None,
        queries: int | None = None,
        seed: int = 0,
        step: int = 0,
    ) -> None:
        self.places = {layer.attention_name: layer.index for layer in layers if layer.attention is not None}
        self.valid, self.documents = valid, documents
        self.queries, self.seed, self.step = queries, seed, step
        self.calls: dict[int, dict[str, Tensor]] = {}

    def __call__(self, call: AttentionCall) -> None:
        """Keeps the statistics of a call.

        Raises:
            ValueError: it is not attention of the tokens to themselves.
        """
        if call.layer not in self.places:
            return
        shape = (len(call.query), call.queries) if self.valid is None else tuple(self.valid.shape)
        if (len(call.query), call.queries, call.keys) != (*shape, shape[1]):
            raise ValueError(
                f"{call.layer}: expected attention of {shape} tokens to themselves, got {len(call.query)} "
                f"sequences of {call.queries} queries and {call.keys} keys"
            )
        rows = None
        if self.queries is not None and self.queries < call.queries:
            rows = stratified_rows(self.queries, call.queries, self.seed, self.step)
        found = attention_statistics(call, rows, self.valid, self.documents)
        values = call.key if call.value is None else call.value
        several = found.queries >= MIN_QUERIES
        self.calls[self.places[call.layer]] = {
            "scores": found.scores(MIN_QUERIES),
            "uniform": (found.uniform / found.queries).where(several, torch.nan).expand_as(found.column_sums),
            "entropy": found.mean_entropy(),
            "relative_entropy": found.relative_entropy(),
            "max_logits": found.max_logits,
            "first_token": found.first_token,
            "no_op": found.no_op,
            "value_norms": torch.linalg.vector_norm(values.detach().float(), dim=-1),
            "gates": torch.full((2,), torch.nan, device=call.query.device),
        }

    def keep_gate(self, name: str, gate: Tensor) -> None:
        """Keeps what the gates of a layer's attention are like."""
        if (place := self.places.get(name)) in self.calls:
            gate = gate.float()
            self.calls[place]["gates"] = torch.stack([gate.mean(), (gate < 0.1).float().mean()])

    def record(self) -> AttentionRecord | None:
        """What was recorded; None if no layer of the stack called attention."""
        if not self.calls:
            return None
        order = sorted(self.calls)
        device = self.calls[order[0]]["scores"].device
        return AttentionRecord(
            torch.tensor(order),
            *(
                torch.stack([self.calls[layer][name].to(device) for layer in order])
                for name in list(AttentionRecord.__dataclass_fields__)[1:]
            ),
        )
