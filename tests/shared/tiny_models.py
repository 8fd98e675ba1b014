"""Small models of transformers, one of each family, with random weights."""

from typing import Any

import torch
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
GROUPED = {"num_key_value_heads": 2}
WIDE = {"num_key_value_heads": 2, "head_dim": 16}  # heads that are not hidden_size / heads wide
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES | GROUPED,
    "qwen3": SIZES | WIDE,
    "qwen3_5_text": SIZES | WIDE | LINEAR,
    "qwen3_next": SIZES
    | WIDE
    | LINEAR
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "gemma2": SIZES | WIDE | {"sliding_window": 8, "attn_logit_softcapping": 0.5},
    "gemma3_text": SIZES | WIDE | {"sliding_window": 8, "sliding_window_pattern": 2},
    "gpt_oss": SIZES
    | WIDE
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 64, "n_positions": 64},
    "gpt_neox": SIZES,
    "mistral": SIZES | GROUPED | {"sliding_window": 8},
    "olmo2": SIZES | GROUPED,
    "phi3": SIZES | GROUPED,
    "bert": SIZES,
}
EAGER_ONLY = ("gemma2", "gpt_oss")  # transformers has no SDPA path for soft caps and learned sinks


def tiny(model_type: str, attention: str = "eager", seed: int = 0, **changes: Any) -> nn.Module:
    """A model in evaluation mode, whose weights are large enough for attention to be uneven."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    config = AutoConfig.for_model(model_type, **(TOKENS | CONFIGS[model_type] | changes))
    auto = AutoModelForMaskedLM if model_type == "bert" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                nn.init.normal_(parameter)
            elif parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 40,
}
LLAVA: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 39,
    "text_config": LLAMA,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 16,
    },
}


def images_and_tokens() -> dict[str, Tensor]:
    """A batch for `LLAVA`: an image of four patches and seven tokens."""
    tokens = torch.tensor([[1, 39, 39, 39, 39, 5, 6]])
    return {"input_ids": tokens, "pixel_values": torch.randn(1, 3, 28, 28, generator=torch.manual_seed(0))}
