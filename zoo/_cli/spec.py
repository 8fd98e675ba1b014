"""Questions to a parsed config: where a class stands, where a checkpoint differs, what would not build."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from zoo._cli.errors import CommandError, error_text
from zoo._cli.trace import plain

# Settings that are a class or, for some, a word such as "ddp". A class that is refused must not become a
# word.
_CLASS_OR_WORD = ("accelerator", "strategy", "logger", "profiler", "plugins", "callbacks")


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node of a config with its dotted path, outermost first."""
    yield path, value
    children: Iterator[tuple[str, Any]] = iter(())
    if isinstance(value, dict):
        children = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif isinstance(value, list):
        children = ((f"{path}[{number}]", item) for number, item in enumerate(value))
    for name, child in children:
        yield from walk(child, name)


def find_class(config: Any, name: str) -> str | None:
    """The dotted path of the first spec in ``config`` whose class has this name."""
    for path, node in walk(plain(config)):
        if isinstance(node, dict) and str(node.get("class_path", "")).rsplit(".", 1)[-1] == name:
            return path
    return None


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted paths to values; ``class_path`` and ``init_args`` do not show in the paths."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key == "init_args" and isinstance(item, dict):
            found |= leaves(item, path) if item else {}
        elif key == "class_path":
            found[f"{path} (class)".strip()] = item
        else:
            found |= leaves(item, f"{path}.{key}" if path else key)
    return found


def differences(saved: Mapping[str, Any], model: Any) -> list[str]:
    """A line for each setting that a checkpoint's hyperparameters and the config give differently.

    Args:
        saved: ``hyper_parameters`` of the checkpoint; settings that it does not hold are not compared.
        model: The parsed config of the model.

    >>> differences({"lr": 0.1, "width": 8}, {"class_path": "mine.Net", "init_args": {"lr": 0.5, "width": 8}})
    ['model.lr was 0.1 and is now 0.5']
    """
    now = plain(model) or {}
    before = {key: plain(value) for key, value in saved.items() if not key.startswith("_")}
    if (old := saved.get("_class_path")) and old != now.get("class_path"):
        return [f"model was {old} and is now {now.get('class_path')}"]
    old_leaves = leaves(before)
    new_leaves = leaves(now.get("init_args", {}))
    lines = []
    for key, value in old_leaves.items():
        if key in new_leaves and not _same(value, new_leaves[key]):
            lines.append(f"model.{key} was {value!r} and is now {new_leaves[key]!r}")
    return lines


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    return bool(one == other)


def refuse_words(trainer: Any) -> Iterator[tuple[str, str]]:
    """Settings of the Trainer whose class was refused and that slipped through as text: (key, class path).

    A union such as ``str | Strategy`` takes a refused class for a word, and the Trainer would then speak of
    an unknown name.
    """
    for key in _CLASS_OR_WORD:
        value = plain(trainer.get(key))
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and ("." in item or "class_path" in item):
                yield f"trainer.{key}", item


def try_optimizers(model: Any, updates: int | None = None) -> None:
    """Builds each of torch's optimizers and schedules in the config once, over a parameter to throw away.

    The model builds them inside fit, which is late to learn that ``lr: -1`` makes no sense.

    Args:
        model: The parsed config of the model.
        updates: How often the model will step its schedule; None if that is not known.

    Raises:
        CommandError: one does not build, or its schedule ends before the run does.
    """
    from lightning.pytorch.cli import instantiate_class

    parameters = [torch.nn.Parameter(torch.zeros(1, 1))]  # a matrix: some optimizers take nothing else
    nodes = [(path, node) for path, node in walk(plain(model), "model") if isinstance(node, dict)]
    built: dict[str, Any] = {}
    for suffix, subject in (("torch.optim.", parameters), ("torch.optim.lr_scheduler.", None)):
        for path, node in nodes:
            class_path = str(node.get("class_path", ""))
            is_schedule = class_path.startswith("torch.optim.lr_scheduler.")
            if not class_path.startswith(suffix) or is_schedule != (subject is None):
                continue
            parent = path.rpartition(".")[0]
            owner: Any = subject if subject is not None else built.get(parent, torch.optim.AdamW(parameters))
            try:
                made = instantiate_class(owner, node | {"init_args": node.get("init_args") or {}})
            except Exception as error:  # a number out of range can be any of a dozen errors
                raise CommandError(
                    f"{path} ({class_path.rsplit('.', 1)[-1]}): {error_text(error)}"
                ) from error
            where = f"{path} ({class_path.rsplit('.', 1)[-1]})"
            _check_range(where, owner if is_schedule else made)
            if not is_schedule:
                built[parent] = made
            elif updates is not None and (end := getattr(made, "total_steps", updates)) < updates:
                raise CommandError(
                    f"{where}: total_steps is {end} and trainer.max_steps {updates}, so update {end + 1} "
                    "would fail: give both the same number, or leave the schedule to the callback "
                    "LRSchedule, which takes the length of the run"
                )


def _check_range(where: str, optimizer: torch.optim.Optimizer) -> None:
    """Refuses rates that parameters of float32 cannot be multiplied by: an update, some way on, would fail.

    Raises:
        CommandError: an option of the optimizer, its schedule's included, is not a finite float32.
    """
    largest = torch.finfo(torch.float32).max
    for group in optimizer.param_groups:
        floats = {name: value for name, value in group.items() if isinstance(value, float)}
        if wrong := {name: value for name, value in floats.items() if not abs(value) <= largest}:
            name, value = max(wrong.items(), key=lambda item: abs(item[1]))
            raise CommandError(f"{where}: {name} is {value}, and a float32 ends at {largest:.3g}")
