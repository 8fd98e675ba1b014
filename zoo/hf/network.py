"""Networks of transformers from a dict of a config, or from saved weights, without surprises.

What transformers lets pass and this refuses: keys of a config that its model type does not know
(`zoo.hf.config`), saved weights that leave parameters at random values, pickled weights, remote code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

from zoo import rng
from zoo.hf.config import Task, model_types, read_config, saved_config

Attention = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]


class UnsupportedAttention(ValueError):
    """A model does not have the backend of attention that was asked for."""


def build_network(
    config: dict[str, Any],
    attention: Attention = "sdpa",
    seed: int = 0,
    task: Task = "text-generation",
) -> nn.Module:
    """A network with random weights.

    The weights are drawn from ``seed`` on the CPU, wherever the model goes later, and the global random state
    is left as it was. Within ``with torch.device("meta")`` nothing is drawn.

    Args:
        config: ``model_type`` and any keys that its transformers config has.
        attention: The backend of attention.
        seed: Seed of the weights.
        task: What the model is for, as transformers' pipelines name it.

    Returns:
        The model, in torch's default dtype, in training mode.

    Raises:
        ValueError: an unknown model type, unknown or impossible keys, or a backend it does not support.
    """
    made = read_config(config, task)
    place = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with rng.seeded(seed), torch.device(place), _supported(attention, str(config["model_type"])):
        network = _auto_class(task).from_config(
            made, attn_implementation=attention, dtype=torch.get_default_dtype()
        )
    return _trainable(network)


def load_network(
    pretrained: str,
    revision: str | None = None,
    attention: Attention = "sdpa",
    task: Task = "text-generation",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A network with saved weights.

    Within ``with torch.device("meta")`` it is built from the saved config alone: no weights are read, and
    nothing is asked of the internet.

    Args:
        pretrained: Folder, or name on the Hugging Face hub; only safetensors are read, no code is.
        revision: Branch, tag or commit of a hub name.
        attention: The backend of attention.
        task: What the model is for, as transformers' pipelines name it.
        dtype: Number format of the weights; None for torch's default.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: the model does not exist, it lacks weights, or it does not support the backend.
    """
    kind = model_types(task)[1]
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if torch.get_default_device().type == "meta":
        with _supported(attention, pretrained):
            return _trainable(
                _auto_class(task).from_config(
                    saved_config(pretrained, revision),
                    attn_implementation=attention,
                    dtype=dtype,
                )
            )
    # transformers draws the weights that it then overwrites: the global random state is left as it was.
    with rng.seeded(0), _supported(attention, pretrained):
        try:
            loaded: Any = _auto_class(task).from_pretrained(
                pretrained,
                revision=revision or "main",
                attn_implementation=attention,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except OSError as error:
            raise ValueError(
                f"pretrained={pretrained!r} (revision {revision or 'main'!r}) could not be read, neither as "
                f"a folder with config.json and safetensors nor from the hub: {error}"
            ) from error
    network, report = loaded
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise ValueError(
            f"pretrained={pretrained!r} lacks {len(lacking)} weights of {type(network).__name__} "
            f"({', '.join(lacking[:4])}), which would be random: take a checkpoint of a {kind}"
        )
    return _trainable(network)


def _auto_class(task: Task) -> Any:
    import transformers

    return (
        transformers.AutoModelForCausalLM
        if task == "text-generation"
        else transformers.AutoModelForImageTextToText
    )


def _trainable(network: nn.Module) -> nn.Module:
    network.train()  # from_pretrained leaves it in evaluation mode, which Lightning would keep
    return network


@contextmanager
def _supported(attention: Attention, model: str) -> Iterator[None]:
    """Says which argument is meant where transformers refuses a backend."""
    if attention not in get_args(Attention):
        raise ValueError(f"attention must be one of {', '.join(get_args(Attention))}, got {attention!r}")
    try:
        yield
    except (ValueError, ImportError) as error:
        message = str(error).lower()
        if not any(word in message for word in ("attention", "flash", "flex", "sdpa")):
            raise
        raise UnsupportedAttention(
            f"attention={attention!r} does not work for {model} here; 'eager' always does. {error}"
        ) from error
