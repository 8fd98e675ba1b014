"""What a config may ask: bounds that are said, and no cycles; the worst files are refused in no time."""

import time
from pathlib import Path

import pytest
import yaml

from zoo._cli.bounds import MAX_BYTES, MAX_DEPTH, MAX_MODULES, MAX_VALUES, read_config, refuse_excess, tell
from zoo._cli.errors import CommandError
from zoo.datamodules import Digits
from zoo.datamodules._base import MAX_WORKERS

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
LINES = [
    ("data: &d {class_path: Digits, init_args: *d}", "line 1: &d contains itself"),
    ("trainer: &t\n  <<: *t\n", "line 2: &t contains itself"),
    (BOMB, f"line 5: more than {MAX_VALUES:,} values (aliases count as what they repeat)"),
    ("x: " + "[" * 3000 + "]" * 3000, f"line 1: more than {MAX_DEPTH} levels inside each other"),
    ("x: " + "{a: " * 100_000, f"line 1: more than {MAX_DEPTH} levels inside each other"),
    ("a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40, f"line 2: more than {MAX_DEPTH}"),
    ("lr: 1\nlr: 2\n", "line 2: 'lr' stands twice, and only one of them could count"),
    ("? [a, b]\n: 1\n", "line 1: a list or mapping stands where the name of a setting is expected"),
    (
        "x: !!python/object/apply:os.system [touch mark]",
        "line 1: tags such as tag:yaml.org,2002:python/object",
    ),
    ("x: !!timestamp y", "line 1: tags such as"),
    ("y" * (MAX_BYTES + 1), f"1,000,001 characters, and a config has {MAX_BYTES:,} at most"),
]


@pytest.mark.parametrize(("text", "line"), LINES, ids=range(len(LINES)))
def test_excess_is_refused_with_its_line_at_once(text, line):
    start = time.monotonic()
    with pytest.raises(yaml.YAMLError) as error:
        refuse_excess(text)
    assert tell(error.value).startswith(line)
    assert time.monotonic() - start < 2


def test_what_is_within_the_bounds_is_read():
    refuse_excess(f"a: &a {'[' * (MAX_DEPTH - 1)}{']' * (MAX_DEPTH - 1)}")
    refuse_excess("base: &b {x: 1}\nmine: {<<: *b, x: 2}\nmore: [*b, *b]\n")
    refuse_excess(f"x: [{'1, ' * (MAX_VALUES - 10)}]")


@pytest.mark.parametrize("words", [["fit", "--config"], ["check"]])
@pytest.mark.parametrize("text", [LINES[0][0], BOMB, LINES[3][0]], ids=["cycle", "bomb", "deep"])
def test_the_command_refuses_such_a_config(zoo, workspace, words, text):
    Path("bad.yaml").write_text(text)
    result = zoo(*words, "bad.yaml")
    assert result.code == 2
    assert "bad.yaml: Problems parsing config: line " in result.err and len(result.err.splitlines()) == 1


def test_a_word_of_the_line_is_no_way_around(zoo, workspace):
    result = zoo("fit", "--config", "quickstart", "--data", "[" * 3000)
    assert result.code == 2 and "Traceback" not in result.err
    assert len(result.err) < 500  # the value is cut


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"x: 1\n\xff\xfe", "is not a config: byte 5 is not of UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), f"is not a config: a config has {MAX_BYTES:,} bytes at most"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, content, line):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(CommandError, match=line):
        read_config(tmp_path / "x.yaml")


def test_workers_processes_and_layers_have_bounds(zoo, workspace):
    with pytest.raises(ValueError, match=f"num_workers must be 0 to {MAX_WORKERS} .*, got 1000000000"):
        Digits(num_workers=10**9)
    assert Digits(num_workers=MAX_WORKERS).num_workers == MAX_WORKERS
    result = zoo("check", "--config", "quickstart", "--trainer.devices", "1000000000")
    assert "trainer.devices: 1000000000 would start as many processes" in result.err
    result = zoo("check", "--config", "quickstart", "--model.network.depth", "1000000000")
    assert result.code == 2 and f"more than {MAX_MODULES:,} modules" in result.err
