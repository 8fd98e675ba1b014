"""LLaMAs whose sinks were planted: every first layer, lifetime and attention weight is known in closed form.

Four coordinates of the states are reserved: e0 is the direction of the sinks, e1 flags the first token, e2 a
trigger token, e3 is the same for all tokens; the content of a token is random, of norm R, in the others. One
unit of a feed-forward network writes M e0 into the state of a flagged token and leaves all others alone; one
in a later layer takes it away. Queries read e3 and keys e0, on the coordinate of the slowest rotation, so the
logit of an ordinary query and key j is a0 cos(h_j, e0). Attention adds nothing to the states, which therefore
do not depend on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo import rng

RESERVED = 8  # coordinates without content
SINK, FIRST, TRIGGER, CONSTANT = range(4)


@dataclass(frozen=True)
class Planted:
    """A sink to plant: it lives in the states that layers ``start`` to ``end - 1`` return.

    Attributes:
        token: Id of the tokens that are sinks: `FIRST_TOKEN`, or a trigger of `TRIGGERS`.
        size: M, the length of what is written; negative for one that points the other way.
        start: The layer that writes it.
        end: The layer that takes it away; None for none.
    """

    token: int
    size: float
    start: int
    end: int | None = None


FIRST_TOKEN = 0
TRIGGERS = (1, 2, 3)  # ids of the tokens with a flag of their own
_FLAGS = {FIRST_TOKEN: 1, 1: 2, 2: 4, 3: 5}  # coordinates


def planted_llama(
    sinks: Sequence[Planted],
    layers: int = 12,
    *,
    vocabulary: int = 64,
    width: int = 64,
    attention: float = 8.0,
    content: float = 8.0,
    growth: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A LLaMA of transformers with planted sinks.

    Args:
        sinks: What to plant.
        layers: L.
        vocabulary: Tokens; the first four are those that can be sinks.
        width: D.
        attention: a0, the logit of a key that points along the sinks; 0 for sinks that nobody attends to.
        content: R, the norm of a token's random content.
        growth: What each layer adds to the norm of a trigger's content, as models do with ordinary tokens.
        seed: Seed of the contents.
        dtype: Of the weights.

    Returns:
        The model, in evaluation mode.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    heads, constant, flag, gain = 2, 4.0, 4.0, 20.0
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
        pad_token_id=None, bos_token_id=None, eos_token_id=None, max_position_embeddings=4096,
    )  # fmt: skip
    with rng.seeded(seed), torch.no_grad():
        model: Any = LlamaForCausalLM(config)
        model = model.to(torch.float64)
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
        nn.init.normal_(model.lm_head.weight, std=width**-0.5)
        vectors = torch.zeros(vocabulary, width, dtype=torch.float64)
        random = torch.randn(vocabulary, width - RESERVED, dtype=torch.float64)
        vectors[:, RESERVED:] = content * random / random.norm(dim=1, keepdim=True)
        vectors[:, CONSTANT] = constant
        for token, coordinate in _FLAGS.items():
            vectors[token, coordinate] = flag
        model.model.embed_tokens.weight.copy_(vectors)
        size = math.sqrt(content**2 + constant**2)  # of an ordinary state
        scale = math.sqrt(attention * 4.0 * size / (constant * width)) if attention else 0.0
        slow = 7  # of 16 coordinates of a head, the one of the slowest rotation
        for layer in model.model.layers:
            for head in range(heads):
                layer.self_attn.q_proj.weight[16 * head + slow, CONSTANT] = scale
            layer.self_attn.k_proj.weight[slow, SINK] = scale
            layer.self_attn.v_proj.weight.copy_(torch.randn_like(layer.self_attn.v_proj.weight) * 0.1)
        states = {token: vectors[token].clone() for token in _FLAGS}
        for number, layer in enumerate(model.model.layers):
            changes = dict.fromkeys(_FLAGS, 0.0)
            for sink in sinks:
                if number == sink.start:
                    changes[sink.token] += sink.size
                if number == sink.end:
                    changes[sink.token] -= sink.size
            unit = 0
            for token, change in changes.items():
                extra = growth if token != FIRST_TOKEN and growth else 0.0
                if not change and not extra:
                    continue
                state = states[token]
                z = gain * state[_FLAGS[token]] / state.square().mean().add(1e-6).sqrt()
                act = z * z.sigmoid() * z
                column = torch.zeros(width, dtype=torch.float64)
                column[SINK] = change
                column[RESERVED:] = extra * vectors[token, RESERVED:] / content
                layer.mlp.gate_proj.weight[unit, _FLAGS[token]] = gain
                layer.mlp.up_proj.weight[unit, _FLAGS[token]] = gain
                layer.mlp.down_proj.weight[:, unit] = column / act
                states[token] = state + column
                unit += 1
    return model.to(dtype).eval()


def planted_tokens(
    length: int, sinks: dict[int, int] | None = None, vocabulary: int = 64, seed: int = 0
) -> Tensor:
    """Ordinary tokens (1, length) after a first one, with some places of others.

    Args:
        length: T.
        sinks: Tokens by place.
        vocabulary: Tokens of the model.
        seed: Seed of the ordinary tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(len(_FLAGS), vocabulary, (1, length), generator=generator)
    tokens[0, 0] = FIRST_TOKEN
    for place, token in (sinks or {}).items():
        tokens[0, place] = token
    return tokens
