"""Configs of transformers as plain dicts, in which no key is ignored.

transformers keeps keys that a model type does not know, and nothing reads them; here they are refused, in the
configs of a model's parts too (``text_config``, ``vision_config``).
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from zoo._suggest import suggest

Task = Literal["text-generation", "image-text-to-text"]  # the names of transformers' pipelines

# What is said elsewhere: by the arguments of the builder, or by the Trainer's precision.
_SAID_ELSEWHERE = {
    "attn_implementation": "the argument attention",
    "dtype": "trainer.precision",
    "torch_dtype": "trainer.precision",
    "trust_remote_code": "nothing: remote code is never run",
}
# What a saved config holds beside the architecture.
_NOT_ARCHITECTURE = {"architectures", "transformers_version", "dtype", "torch_dtype", "auto_map"}


def model_types(task: Task) -> tuple[Iterable[str], str]:
    """The model types that transformers has for a task, and what such a model is called."""
    from transformers.models.auto import modeling_auto as auto

    if task == "text-generation":
        return auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "causal language model"
    if task == "image-text-to-text":
        return auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "vision-language model"
    raise ValueError(f"task must be text-generation or image-text-to-text, got {task!r}")


def read_config(config: dict[str, Any], task: Task = "text-generation") -> Any:
    """A transformers config from a dict; the dict is left as it is.

    Args:
        config: ``model_type`` and any keys that its config has.
        task: What the model is for.

    Raises:
        ValueError: an unknown model type; keys that it does not know, or values that it does not take.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    given = copy.deepcopy(config)  # transformers completes nested dicts in place
    known, kind = model_types(task)
    model_type = given.pop("model_type", None)
    if model_type is None:
        examples = "llama or gpt2" if task == "text-generation" else "llava or qwen2_5_vl"
        raise ValueError(
            f"config must have the key model_type, one of transformers' {kind}s, for example {examples}; "
            f"got the keys {sorted(config)}"
        )
    if model_type not in known:
        raise ValueError(
            f"config: model_type {model_type!r} is not a {kind} of transformers"
            + _suggest_or_list(str(model_type), known)
        )
    _refuse_unknown(given, AutoConfig.for_model(model_type), "config")
    try:
        return AutoConfig.for_model(model_type, **given)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"config does not describe a {model_type} model. {error}") from error


def saved_config(pretrained: str, revision: str | None) -> Any:
    """The config of saved weights that are on this machine.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    folder = Path(pretrained)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ValueError(f"pretrained={pretrained!r} is a folder without weights: no safetensors are in it")
    try:
        return AutoConfig.from_pretrained(
            pretrained, revision=revision or "main", trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ValueError(f"pretrained={pretrained!r}: its config.json cannot be read: {error}") from error
        raise ValueError(
            f"pretrained={pretrained!r} is not a local folder, and no copy of such a model from the hub is "
            "on this machine: a check downloads nothing, give the folder of the model"
        ) from error


def plain_config(network: nn.Module) -> dict[str, Any]:
    """The dict from which `zoo.hf.build_network` makes a network of the same architecture."""
    made: Any = network.config
    return _plain(made.to_diff_dict(), made)


def _plain(whole: dict[str, Any], made: Any) -> dict[str, Any]:
    known = _known_keys(made) - _NOT_ARCHITECTURE
    kept = {name: value for name, value in whole.items() if name in known}
    for name in made.sub_configs:
        if isinstance(kept.get(name), dict):
            kept[name] = _plain(kept[name], getattr(made, name))
    return kept | {"model_type": made.model_type}


def _refuse_unknown(given: dict[str, Any], default: Any, where: str) -> None:
    """Refuses keys that a config does not know, in the configs of its parts too.

    Args:
        given: What is to be checked, without ``model_type`` at the top.
        default: A config of the type with nothing given.
        where: Where the keys stand, which begins the message.
    """
    from transformers import AutoConfig

    known = _known_keys(default)
    for name, value in given.items():
        if name in _SAID_ELSEWHERE:
            raise ValueError(f"{where} must not hold {name!r}: that is said by {_SAID_ELSEWHERE[name]}")
        if name not in known:
            raise ValueError(
                f"{where}: {default.model_type} knows no key {name!r} (transformers would ignore it)"
                + _suggest_or_list(name, known - _NOT_ARCHITECTURE)
            )
        if name in default.sub_configs and isinstance(value, dict):
            part = getattr(default, name)
            inner = dict(value)
            model_type = inner.pop("model_type", None)
            if part is None or model_type not in (None, part.model_type):
                try:
                    part = AutoConfig.for_model(model_type)
                except ValueError as error:
                    raise ValueError(
                        f"{where}.{name}: transformers has no model_type {model_type!r}"
                    ) from error
            _refuse_unknown(inner, part, f"{where}.{name}")


def _known_keys(default: Any) -> set[str]:
    return {*default.to_dict(), *default.attribute_map} - {"model_type"}


def _suggest_or_list(name: str, known: Iterable[str]) -> str:
    return suggest(name, known) or f"; known are {', '.join(sorted(known))}"
