"""Checks of a language model's arguments, and of its data before the first batch."""

import math
from typing import Any


def check_source(config: Any, pretrained: str | None, revision: str | None) -> None:
    """Refuses anything but exactly one of a config and a pretrained model.

    Raises:
        ValueError: neither was given, or both, or a revision without a pretrained model.
    """
    if (config is None) == (pretrained is None):
        given = "neither" if config is None else f"both (pretrained={pretrained!r})"
        raise ValueError(
            f"give exactly one of config, for random weights, and pretrained, for saved ones; got {given}"
        )
    if revision is not None and pretrained is None:
        raise ValueError(f"revision={revision!r} is of a pretrained model: give pretrained, or no revision")


def check_z_loss(z_loss: float) -> None:
    """Refuses a coefficient that is negative or not finite."""
    if not (math.isfinite(z_loss) and z_loss >= 0):
        raise ValueError(f"z_loss must be 0 or more, got {z_loss}")


def check_data(data: Any, vocab_size: int, max_context: int | None, pretrained: bool) -> None:
    """Refuses a datamodule whose tokens or lengths are not the model's; it may lack each of the attributes.

    Args:
        data: The datamodule, of which ``vocab_size``, ``own_vocabulary`` and ``context`` are read, or None.
        vocab_size: Tokens that the model knows.
        max_context: The longest input in tokens; None for no limit.
        pretrained: Whether the tokens have a meaning to the model.

    Raises:
        ValueError: the data have tokens that the model does not know (or that are not those of a pretrained
            model), or are longer than its context.
    """
    theirs = getattr(data, "vocab_size", None)
    if theirs is not None and theirs > vocab_size:
        raise ValueError(
            f"the data have vocab_size={theirs} tokens, but the model knows {vocab_size}: give "
            f"config.vocab_size at least {theirs}, or the data the tokenizer of the model"
        )
    if pretrained and getattr(data, "own_vocabulary", False) and theirs != vocab_size:
        raise ValueError(
            f"the data make tokens of their own, of {theirs} ids, and the pretrained model has a vocabulary "
            f"of {vocab_size}: they mean something else to it. Give the data the model's tokenizer (the "
            "folder with its tokenizer.json)"
        )
    context = getattr(data, "context", None)
    if context is not None:
        check_context(context, max_context, f"the data's context={context}")


def check_context(length: int, max_context: int | None, what: str) -> None:
    """Refuses an input that is longer than the model's context; ``what`` begins the message."""
    if max_context is not None and length > max_context:
        raise ValueError(
            f"{what}: that is longer than the model's max_position_embeddings={max_context}. Raise that in "
            "config, or shorten the data's context, the prompts or max_new_tokens"
        )


def check_prompts(prompts: Any, new: int, max_context: int | None) -> None:
    """Refuses what cannot be continued by ``new`` tokens.

    Raises:
        ValueError: there is no prompt, or the whole is longer than the model's context.
    """
    if prompts.ndim != 2 or prompts.shape[1] < 1:
        raise ValueError(f"prompts must be tokens (B, P) with P at least 1, got {tuple(prompts.shape)}")
    length = prompts.shape[1]
    check_context(length + new - 1, max_context, f"{length} tokens of a prompt and {new} new")
