"""Configs broken on purpose: the small bundled ones, mutated by a seeded generator.

`cases` makes them, each from (seed, number) alone, so that a failure is named by its number. What they ask
for is what a user or an attacker may write: other types, absurd numbers, foreign classes, addresses of other
machines, cycles, bombs, bytes that are no text.
"""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from bundled import FOLDER

BASES = ("quickstart", "flow/eight_gaussians", "flow/digits_pretrain", "lm/bigram", "lm/stdlib_wsds")
CANARY = "canary_module"  # an importable module that no config may import
REMOTE = "http://127.0.0.1:9/canary"
_BASES = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in BASES}
_BASES["lm/stdlib_wsds"]["data"]["init_args"]["source"] = (
    "pydoc_topics"  # a tokenizer in a second, not in ten
)

_VALUES: list[Any] = [
    *(
        None,
        True,
        "",
        "x",
        "1e3",
        " ",
        "null",
        "ß€😀",
        "a.b",
        ".",
        "..",
        "-",
        "--help",
        "$HOME",
        "{",
        "[1",
        "*a",
    ),
    *(0, -1, 1.5, 10**30, [], {}, [[1]], [None], {"a": 1}, {"class_path": None}, {"class_path": []}),
    *(
        {"class_path": "x", "init_args": 3},
        {"init_args": {}},
        [1, 2, 3],
        "torch",
        "torch.nn",
        "print",
        3 + 0.0,
    ),
]
_NUMBERS = [
    10**6,
    10**9,
    10**18,
    10**30,
    1e308,
    -1e308,
    1e-308,
    float("inf"),
    float("nan"),
    -1,
    0,
    -(10**9),
    0.5,
]
_WRONG = [
    *(
        "MeanFloww",
        "zoo.flow.MeanFloww",
        "zoo.nowhere.X",
        "torch.nn.Linear",
        "torch.nn.functional.relu",
        "Digits",
    ),
    *(
        "zoo",
        "zoo.",
        ".zoo",
        "zoo..flow",
        "zoo.flow",
        "torch.optim.AdamW",
        "SampleGrid",
        "zoo.flow.MLP",
        "int",
        "",
    ),
    *(
        "lightning.pytorch.callbacks.Timer",
        "lightning.pytorch.callbacks.LearningRateFinder",
        "Callback",
        "Module",
    ),
    *("zoo.schedules.wsds", "zoo.flow.sample_mean_flow", "torch.nn.Module", "LightningModule", "MeanFlow\n"),
]
_HOSTILE = [
    *(
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "zoo.io.os.system",
        "zoo.cli.main",
        "zoo._cli.train.run",
    ),
    *(f"{CANARY}.Net", CANARY, "torch.hub.load", "torch.load", "pickle.loads", "importlib.import_module"),
    *(
        "jsonargparse.set_parsing_settings",
        "lightning.pytorch.cli.LightningCLI",
        "transformers.AutoModel",
        "antigravity",
    ),
]
_PLACES = [
    *(
        REMOTE,
        f"{REMOTE}.ckpt",
        "https://127.0.0.1:9/x",
        "s3://bucket/x.ckpt",
        "gs://b/x",
        "hf://some/repo",
        "file:///x",
    ),
    *(
        "/etc/passwd",
        "/proc/self/mem",
        "/dev/zero",
        "/dev/full",
        "/home/x",
        "/",
        "../../x",
        "~",
        "some/repo",
        "a\0b",
    ),
]
_CALLBACKS: list[Any] = [
    *(
        "LearningRateFinder",
        "LearningRateMonitor",
        "StochasticWeightAveraging",
        "EarlyStopping",
        "Timer",
        "DeviceStatsMonitor",
    ),
    *(
        "ModelPruning",
        "OnExceptionCheckpoint",
        "GradientAccumulationScheduler",
        "RichProgressBar",
        "ThroughputMonitor",
    ),
    *(
        "TrajectoryWriter",
        "EMAGap",
        "WSDS",
        "SampleWriter",
        "TextWriter",
        "ExactResume",
        "SampleReport",
        "LambdaCallback",
    ),
]
_TRAINER = [
    *("strategy", "devices", "accelerator", "precision", "logger", "plugins", "profiler", "max_time"),
    *(
        "limit_train_batches",
        "overfit_batches",
        "accumulate_grad_batches",
        "gradient_clip_val",
        "default_root_dir",
    ),
    *(
        "benchmark",
        "deterministic",
        "use_distributed_sampler",
        "detect_anomaly",
        "barebones",
        "sync_batchnorm",
    ),
    *(
        "model_registry",
        "reload_dataloaders_every_n_epochs",
        "fast_dev_run",
        "inference_mode",
        "check_val_every_n_epoch",
    ),
]
_DATA = [
    "Text",
    "CIFAR10",
    "ImageFolder",
    "Latents",
    "Trajectories",
    "ClassLabels",
    "Bigram",
    "Mixture1D",
    "Checkerboard",
]


@dataclass(frozen=True)
class Case:
    """A config: its number, the mutation that made it, and its bytes."""

    number: int
    kind: str
    content: bytes


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every node below the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from nodes(child, (*path, key))


def at(config: Any, path: tuple[Any, ...]) -> Any:
    """The node of a path."""
    for key in path:
        config = config[key]
    return config


def _pick(
    chance: random.Random, config: Any, fits: Callable[[Any, Any], bool] = lambda key, value: True
) -> Any:
    """The parent and key of a random node that fits."""
    found = [path for path in nodes(config) if fits(path[-1], at(config, path))]
    path = chance.choice(found or list(nodes(config)))
    return at(config, path[:-1]), path[-1]


def _wrong_type(chance: random.Random, config: Any) -> None:
    parent, key = _pick(chance, config)
    parent[key] = copy.deepcopy(chance.choice(_VALUES))


def _number(chance: random.Random, config: Any) -> None:
    parent, key = _pick(chance, config, lambda _, value: isinstance(value, int | float))
    parent[key] = chance.choice(_NUMBERS)


def _missing(chance: random.Random, config: Any) -> None:
    parent, key = _pick(chance, config)
    del parent[key]


def _extra(chance: random.Random, config: Any) -> None:
    parent, key = _pick(chance, config, lambda _, value: isinstance(value, dict))
    name = chance.choice(
        ["extra", "class_path", "init_args", "dict_kwargs", "", "a.b", "self", "__class__", 3, None, "+"]
    )
    value = copy.deepcopy(chance.choice([*_VALUES, *_HOSTILE, *_NUMBERS]))
    parent[key] = (parent[key] if isinstance(parent[key], dict) else {}) | {name: value}


def _class_path(paths: list[str]) -> Callable[[random.Random, Any], None]:
    def mutate(chance: random.Random, config: Any) -> None:
        parent, key = _pick(chance, config, lambda key, value: key == "class_path" or isinstance(value, str))
        parent[key] = chance.choice(paths)

    return mutate


def _hostile_node(chance: random.Random, config: Any) -> None:
    parent, key = _pick(chance, config)
    path = chance.choice(_HOSTILE)
    arguments = chance.choice([{}, {"args": "touch mark", "shell": True}, {"command": "touch mark"}])
    parent[key] = {"class_path": path, "init_args": arguments}


def _place(chance: random.Random, config: Any) -> None:
    place = chance.choice(_PLACES)
    keys = {"model": "init_from", "data": chance.choice(["source", "root", "path", "files", "tokenizer"])}
    kind = chance.choice(["ckpt_path", "ckpt_path", "model", "data", "trainer", "node", "pretrained"])
    if kind == "ckpt_path":
        config["ckpt_path"] = place
    elif kind == "trainer":
        config["trainer"]["default_root_dir"] = place
    elif kind == "pretrained":
        config["model"] = {"class_path": "CausalLM", "init_args": {"pretrained": place}}
    elif kind == "node":
        parent, key = _pick(chance, config, lambda _, value: isinstance(value, str))
        parent[key] = place
    else:
        config[kind].setdefault("init_args", {})[keys[kind]] = place


def _trainer(chance: random.Random, config: Any) -> None:
    config["trainer"][chance.choice(_TRAINER)] = copy.deepcopy(chance.choice([*_VALUES, *_NUMBERS, 1]))


def _callback(chance: random.Random, config: Any) -> None:
    name = chance.choice(_CALLBACKS)
    spec: Any = {
        "class_path": name,
        "init_args": {chance.choice(["monitor", "every_n_steps", "mode", "x"]): "x"},
    }
    config["trainer"].setdefault("callbacks", []).append(chance.choice([name, {"class_path": name}, spec]))


def _data(chance: random.Random, config: Any) -> None:
    arguments = chance.choice(
        [{}, {"num_workers": chance.choice(_NUMBERS)}, {"batch_size": chance.choice(_NUMBERS)}]
    )
    config["data"] = {
        "class_path": chance.choice([*_DATA, config["data"]["class_path"]]),
        "init_args": dict(arguments),
    }


def _swap(chance: random.Random, config: Any) -> None:
    (one, key), (other, name) = _pick(chance, config), _pick(chance, config)
    one[key] = copy.deepcopy(other[name])


def _rename(chance: random.Random, config: Any) -> None:
    parent, key = _pick(chance, config, lambda key, _: isinstance(key, str))
    parent[chance.choice([f"{key}s", key[:-1], key.upper(), f"{key}+", 3, None, 1.5, True, ("a", 1)])] = (
        parent.pop(key)
    )


_TREE: dict[str, Callable[[random.Random, Any], None]] = {
    "wrong type": _wrong_type,
    "number": _number,
    "missing": _missing,
    "extra": _extra,
    "wrong class": _class_path(_WRONG),
    "hostile class": _class_path(_HOSTILE),
    "hostile node": _hostile_node,
    "place": _place,
    "trainer": _trainer,
    "callback": _callback,
    "data": _data,
    "swap": _swap,
    "rename": _rename,
}
_ADDING = ("callback", "data", "place", "trainer")


def _bomb(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def _text(chance: random.Random, text: str) -> tuple[str, bytes]:
    """A mutation of the text itself: its name, and the bytes."""
    depth = chance.choice([50, 1000, 3000, 100_000])
    head, tail = text.split("trainer:\n", 1)
    made: dict[str, str | bytes] = {
        "cycle of data": "data: &d {class_path: Digits, init_args: *d}\n" + text,
        "cycle of a list": "x: &x [*x]\n" + text,
        "cycle of trainer": text.replace("trainer:\n", "trainer: &t\n  logger: *t\n"),
        "merge of itself": text.replace("trainer:\n", "trainer: &t\n  <<: *t\n"),
        "alias bomb": _bomb(chance.choice([4, 9, 40])) + text,
        "alias bomb in data": _bomb(9) + text.replace("data:\n", "data:\n  bomb: *a8\n"),
        "alias bomb as arguments": text
        + "\n".join("  " + line for line in ["x:", *("  " + x for x in _bomb(9).split("\n"))]),
        "alias": f"a: &a {{x: 1}}\nb: *a\n{text}",
        "undefined alias": text.replace("trainer:\n", "trainer:\n  logger: *nowhere\n"),
        "deep list": f"x: {'[' * depth}{']' * depth}\n{text}",
        "deep list, open": f"x: {'[' * depth}\n{text}",
        "deep mapping": f"x: {'{a: ' * depth}1{'}' * depth}\n{text}",
        "deep string": f"seed_everything: '{'[' * depth}'\n{text}",
        "deep block": "x:\n" + "".join(" " * n + "a:\n" for n in range(1, min(depth, 1500))) + text,
        "long scalar": f"x: {'y' * 2_000_000}\n{text}",
        "long list": f"x: [{'1, ' * 200_000}]\n{text}",
        "long number": text.replace("trainer:\n", f"trainer:\n  max_time: {'9' * 5000}\n"),
        "long number of steps": f"{head}trainer:\n  log_every_n_steps: {'9' * 5000}\n{tail}",
        "same key": text + text,
        "same key inside": text.replace("trainer:\n", "trainer:\n  devices: 1\n  devices: 1\n"),
        "python object": text.replace(
            "trainer:\n", "trainer:\n  logger: !!python/object/apply:os.system ['touch mark']\n"
        ),
        "python name": text.replace("trainer:\n", f"trainer:\n  logger: !!python/name:{CANARY}.Net\n"),
        "unknown tag": text.replace("trainer:\n", "trainer: !mine\n"),
        "binary tag": text.replace("trainer:\n", "trainer:\n  logger: !!binary x\n"),
        "set tag": text.replace("trainer:\n", "trainer:\n  callbacks: !!set {a, b}\n  x: !!omap [a: 1]\n"),
        "a date": text.replace("trainer:\n", "trainer:\n  max_time: 2001-12-14t21:59:43.10-05:00\n"),
        "unhashable key": text.replace("trainer:\n", "trainer:\n  ? [a, {b: 1}]\n  : 1\n"),
        "tab": text.replace("  ", "\t", 3),
        "two documents": f"{text}---\n{text}",
        "a list": "- " + text.replace("\n", "\n  "),
        "a scalar": "quickstart",
        "nothing": "",
        "comments": "# nothing\n",
        "junk": chance.randbytes(2000),
        "junk behind": text.encode() + chance.randbytes(50),
        "utf-16": text.encode("utf-16"),
        "utf-16 without mark": text.encode("utf-16-le"),
        "latin-1": f"# straße\n{text}".encode("latin-1"),
        "zeros": text.replace("trainer", "train\0er").encode(),
        "byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "surrogate": text.encode() + b"x: '\xed\xa0\x80'\n",
        "escapes": text.replace("trainer:\n", 'trainer:\n  logger: "\\uD800\\x00\\e[31m"\n'),
        "end of line": text.replace("\n", "\r"),
        "cut": text[: chance.randrange(len(text))],
        "a letter": text,
        "an included file": text.replace("trainer:\n", "trainer: /etc/passwd\nx:\n"),
        "a remote file": text.replace("model:\n", f"model: {REMOTE}.yaml\nx:\n"),
        "itself": text.replace("model:\n", "model: case.yaml\nx:\n"),
        "inner config": f"config: case.yaml\n{text}",
        "inner remote config": f"config: {REMOTE}.yaml\n{text}",
        "inner fit": f"fit:\n  config: {REMOTE}.yaml\nsubcommand: test\n{text}",
    }
    kind = chance.choice(list(made))
    content = made[kind]
    if kind == "a letter":
        for _ in range(chance.choice([1, 3])):
            where = chance.randrange(len(text))
            text = text[:where] + chance.choice("{}[]:,&*!|>'\"%@`#-? \t\n0a") + text[where + 1 :]
        content = text
    return kind, content if isinstance(content, bytes) else content.encode()


def case(seed: int, number: int) -> Case:
    """The config of a seed and a number."""
    chance = random.Random(f"{seed}/{number}")
    base = copy.deepcopy(_BASES[chance.choice(BASES)])
    if chance.random() < 0.35:
        return Case(number, *_text(chance, yaml.safe_dump(base, sort_keys=False)))
    chosen = {chance.choice(list(_TREE)) for _ in range(chance.choice([1, 1, 2]))}
    # What adds to a sound config comes before what breaks it.
    names = sorted(chosen, key=lambda name: (name not in _ADDING, name))
    for name in names:
        _TREE[name](chance, base)
    return Case(number, " + ".join(names), yaml.dump(base, sort_keys=False, allow_unicode=True).encode())


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """The first configs of a seed."""
    return (case(seed, number) for number in range(count))
