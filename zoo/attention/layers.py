"""Where the layers of a model are, and the attention and the feed-forward network of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

# Names of the feed-forward network in the layers of transformers, timm and torch. Where it is no module of
# its own, it is called by its first part, and what it returns is what its last part returns.
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc1", "linear1", "intermediate")
_LAST_PART = {"fc1": "fc2", "linear1": "linear2", "intermediate": "output.dense"}


@dataclass(frozen=True, eq=False)
class Layer:
    """One of the equal layers that a model stacks.

    Attributes:
        index: Its place in the stack, from 0.
        name: Its name in the model.
        module: The layer.
        attention: Its softmax attention; None where it mixes tokens in another way.
        attention_name: The name of that in the model; "" where there is none.
    """

    index: int
    name: str
    module: nn.Module
    attention: nn.Module | None
    attention_name: str


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that call softmax attention, by their names.

    transformers' models say themselves which class it is (so hybrids such as Qwen3.5 are read rightly);
    elsewhere it is what is called attention, and has nothing inside that is.
    """
    classes, known = _declared(model)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(isinstance(module, cls) and part in f".{name}" for cls, part in classes):
            found[name] = module
        elif not any(name == root or name.startswith(f"{root}.") or not root for root in known):
            inside = any(_is_called_attention(part) for part in module.modules() if part is not module)
            if _is_called_attention(module) and not inside:
                found[name] = module
    return found


def stacks(model: nn.Module) -> dict[str, list[Layer]]:
    """The stacks of layers with attention in a model, by their names: a vision-language model has two.

    A stack is a list of modules of one kind, some of which have attention; lists in lists do not count.

    Raises:
        ValueError: there is no attention in the model.
    """
    attention = attention_modules(model)
    found: dict[str, list[Layer]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or not len(module):
            continue
        if any(name.startswith(f"{outer}.") for outer in found) or len({type(part) for part in module}) > 1:
            continue
        layers = [
            _layer(index, f"{name}.{key}", part, attention)
            for index, (key, part) in enumerate(module.named_children())
        ]
        if any(layer.attention is not None for layer in layers):
            found[name] = layers
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no layers with attention: no list of equal modules with one that "
            "calls softmax attention was found"
        )
    return found


def find_stack(model: nn.Module, name: str | None = None) -> list[Layer]:
    """One stack of a model: the named one, or that of its language model, or the one of most parameters.

    Raises:
        ValueError: there is no attention in the model, or no stack of that name.
    """
    found = stacks(model)
    if name is not None:
        if name not in found:
            raise ValueError(f"stack must be one of {', '.join(found)}, got {name!r}")
        return found[name]
    configs = (getattr(module, "config", None) for module in model.modules())  # the outermost first
    config: Any = next((config for config in configs if hasattr(config, "get_text_config")), None)
    if config is not None:
        text = config.get_text_config()
        count, width = (getattr(text, key, None) for key in ("num_hidden_layers", "hidden_size"))
        fitting = [
            layers
            for layers in found.values()
            if len(layers) == count
            and getattr(getattr(layers[0].module, "config", text), "hidden_size", width) == width
        ]
        outer = [
            layers for layers in fitting if "vision" not in layers[0].name and "visual" not in layers[0].name
        ]
        if outer or fitting:
            return (outer or fitting)[0]
    return max(
        found.values(),
        key=lambda layers: sum(p.numel() for layer in layers for p in layer.module.parameters()),
    )


def feed_forward_input(layer: nn.Module) -> nn.Module:
    """The module of a layer whose input is the input of the feed-forward network.

    Raises:
        ValueError: it has none of the known names.
    """
    for name in _FEED_FORWARD:
        if isinstance(found := getattr(layer, name, None), nn.Module):
            return found
    raise ValueError(
        f"{type(layer).__name__} has no feed-forward network of the names {', '.join(_FEED_FORWARD)}; its "
        f"parts are {', '.join(name for name, _ in layer.named_children())}"
    )


def feed_forward_output(layer: nn.Module) -> nn.Module:
    """The module of a layer whose output is the output of the feed-forward network, before it is added.

    Raises:
        ValueError: it has none of the known names.
    """
    if isinstance(normed := getattr(layer, "post_feedforward_layernorm", None), nn.Module):
        return normed  # Gemma 2 and 3 and OLMo 2 norm what they add
    for name in _FEED_FORWARD:
        if isinstance(found := getattr(layer, name, None), nn.Module):
            return layer.get_submodule(_LAST_PART[name]) if name in _LAST_PART else found
    return feed_forward_input(layer)  # which says what was looked for


def _layer(index: int, name: str, module: nn.Module, attention: dict[str, nn.Module]) -> Layer:
    inside = [found for found in attention if found == name or found.startswith(f"{name}.")]
    # A decoder's layer has self-attention first and then attention to the encoder.
    own = inside[0] if inside else ""
    return Layer(index, name, module, attention.get(own), own)


def _is_called_attention(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.MultiheadAttention)
        or "attention" in type(module).__name__.lower()
        or (type(module).__name__.endswith("Attn"))
    )


def _declared(model: nn.Module) -> tuple[list[tuple[type, str]], list[str]]:
    """What transformers' models in a model declare as attention: classes with a part of their names.

    Also the names of these models; nothing else is sought inside of them.
    """
    classes: list[tuple[type, str]] = []
    known: list[str] = []
    for name, module in model.named_modules():
        declared = getattr(module, "_can_record_outputs", None)
        if not isinstance(declared, dict) or "attentions" not in declared:
            continue
        known.append(name)
        classes += list(_targets(declared["attentions"]))
    return classes, known


def _targets(recorded: Any) -> Iterator[tuple[type, str]]:
    for item in recorded if isinstance(recorded, list | tuple) else [recorded]:
        if isinstance(item, type):
            yield item, ""
        elif isinstance(getattr(item, "target_class", None), type):
            yield item.target_class, item.layer_name or ""


def attention_output(layer: Layer) -> nn.Module | None:
    """The module whose output is what a layer's attention adds to the states; None without attention."""
    if layer.attention is None:
        return None
    # Gemma 2 and 3 and OLMo 2 norm what they add; elsewhere the norm of this name is the feed-forward's.
    if isinstance(getattr(layer.module, "post_feedforward_layernorm", None), nn.Module):
        return layer.module.get_submodule("post_attention_layernorm")
    return layer.attention
