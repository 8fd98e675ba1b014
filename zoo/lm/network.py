"""Causal language models of transformers from a dict of a config, or from saved weights, without surprises.

What transformers lets pass and this refuses: keys of a config that its model type does not know (they are
kept and read by nobody), saved weights that leave parameters at random values, pickled weights, remote code.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from zoo._suggest import suggest

Attention = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]

# What is said elsewhere: by the arguments of the builder, or by the Trainer's precision.
_SAID_ELSEWHERE = {
    "attn_implementation": "the argument attention",
    "dtype": "trainer.precision",
    "torch_dtype": "trainer.precision",
    "trust_remote_code": "nothing: remote code is never run",
}
# What a saved config holds beside the architecture.
_NOT_ARCHITECTURE = {"architectures", "transformers_version", "dtype", "torch_dtype", "auto_map"}


def build_network(config: dict[str, Any], attention: Attention, seed: int) -> nn.Module:
    """A causal language model with random weights.

    The weights are drawn from ``seed`` on the CPU, wherever the model goes later, and the global random state
    is left as it was. Within ``with torch.device("meta")`` nothing is drawn.

    Args:
        config: ``model_type`` and any keys that its transformers config has.
        attention: The backend of attention.
        seed: Seed of the weights.

    Returns:
        The model, in torch's default dtype.

    Raises:
        ValueError: an unknown model type, unknown or impossible keys, or a backend it does not support.
    """
    from transformers import AutoModelForCausalLM

    made = _transformers_config(config)
    place = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with _drawn_from(seed), torch.device(place), _supported(attention, str(config["model_type"])):
        network = AutoModelForCausalLM.from_config(
            made, attn_implementation=attention, dtype=torch.get_default_dtype()
        )
    return _trainable(network)


def load_network(pretrained: str, revision: str | None, attention: Attention, seed: int) -> nn.Module:
    """A causal language model with saved weights, in torch's default dtype.

    Within ``with torch.device("meta")`` it is built from the saved config alone: no weights are read, and
    nothing is asked of the network.

    Args:
        pretrained: Folder, or name on the Hugging Face hub; only safetensors are read, no code is.
        revision: Branch, tag or commit of a hub name.
        attention: The backend of attention.
        seed: Seed of nothing, as no weight may be missing; the global random state is left as it was.

    Raises:
        ValueError: the model does not exist, it lacks weights, or it does not support the backend.
    """
    from transformers import AutoModelForCausalLM

    if torch.get_default_device().type == "meta":
        with _supported(attention, pretrained):
            return _trainable(
                AutoModelForCausalLM.from_config(
                    _saved_config(pretrained, revision),
                    attn_implementation=attention,
                    dtype=torch.get_default_dtype(),
                )
            )
    with _drawn_from(seed), _supported(attention, pretrained):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                pretrained,
                revision=revision or "main",
                attn_implementation=attention,
                dtype=torch.get_default_dtype(),
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
            f"({', '.join(lacking[:4])}), which would be random: take a checkpoint of a causal language model"
        )
    return _trainable(network)


def plain_config(network: nn.Module) -> dict[str, Any]:
    """The dict from which `build_network` makes a network of the same architecture."""
    made: Any = network.config
    whole = made.to_diff_dict()
    known = _known_keys(whole["model_type"])
    return {name: value for name, value in whole.items() if name in known - _NOT_ARCHITECTURE} | {
        "model_type": whole["model_type"]
    }


def _transformers_config(config: dict[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    given = copy.deepcopy(config)  # transformers completes nested dicts in place
    model_type = given.pop("model_type", None)
    if model_type is None:
        raise ValueError(
            "config must have the key model_type, one of transformers' causal language models, for example "
            f"llama or gpt2; got the keys {sorted(config)}"
        )
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"config: model_type {model_type!r} is not a causal language model of transformers"
            + _suggest_or_list(str(model_type), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        )
    known = _known_keys(model_type)
    for name in given:
        if name in _SAID_ELSEWHERE:
            raise ValueError(f"config must not hold {name!r}: that is said by {_SAID_ELSEWHERE[name]}")
        if name not in known:
            raise ValueError(
                f"config: {model_type} knows no key {name!r} (transformers would ignore it)"
                + _suggest_or_list(name, known - _NOT_ARCHITECTURE)
            )
    try:
        return AutoConfig.for_model(model_type, **given)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"config does not describe a {model_type} model. {error}") from error


def _saved_config(pretrained: str, revision: str | None) -> Any:
    """The config of saved weights that are on this machine."""
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


def _suggest_or_list(name: str, known: Iterable[str]) -> str:
    return suggest(name, known) or f"; known are {', '.join(sorted(known))}"


def _known_keys(model_type: str) -> set[str]:
    from transformers import AutoConfig

    default = AutoConfig.for_model(model_type)
    return {*default.to_dict(), *default.attribute_map} - {"model_type"}


def _trainable(network: nn.Module) -> nn.Module:
    network.train()  # from_pretrained leaves it in evaluation mode, which Lightning would keep
    return network


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Draws of torch on the CPU come from ``seed`` within, and go on as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


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
        raise ValueError(
            f"attention={attention!r} does not work for {model} here; 'eager' always does. {error}"
        ) from error
