"""Honest pickles are what `pickle` reads, hostile ones run nothing, and both cost what their length says."""

import copyreg
import io
import pickle
import pickletools
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.pickles import Global, Inert, read_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
        | st.frozensets(st.integers())
    ),
    max_leaves=12,
)


def read(data: bytes, **options: Any) -> Any:
    return read_pickle(io.BytesIO(data), **options)


@given(value=PLAIN, protocol=st.sampled_from([4, 5]))
@settings(max_examples=100, deadline=None)
def test_plain_values_are_what_pickle_reads(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    for form in (data, pickletools.optimize(data)):
        assert read(form) == value


def test_the_stream_stands_behind_the_pickle() -> None:
    """Whether the protocol has frames or not; PyTorch's old format is five pickles and numbers."""
    for protocol in range(6):
        stream = io.BytesIO(pickle.dumps([1, "x" * 100], protocol) + pickle.dumps(2, protocol) + b"rest")
        assert [read_pickle(stream), read_pickle(stream), stream.read()] == [[1, "x" * 100], 2, b"rest"]


def test_records_of_calls() -> None:
    class Made:
        def __reduce__(self) -> Any:
            return struct.Struct, ("<i",), {"a": 1}, iter([2, 3])

    made = read(pickle.dumps(Made()))
    assert isinstance(made, Inert) and made.made_by == Global("_struct", "Struct")
    assert (made.arguments, made.state, made.items, made.pairs) == (("<i",), {"a": 1}, [2, 3], {})
    data = pickle.dumps([struct.Struct, Made()])
    name, answer = read(data, call=lambda function, arguments: [str(function), *arguments])
    assert name == Global("_struct", "Struct") and answer == ["_struct.Struct", "<i", 2, 3]


# Instructions that only put plain values together; those that could do more are replaced in `zoo.pickles`.
PLAIN_INSTRUCTIONS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "NONE", "NEWTRUE", "NEWFALSE",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT", "EMPTY_LIST",
    "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "EMPTY_SET", "POP",
    "DUP", "MARK", "POP_MARK", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
    "GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "PROTO", "STOP", "FRAME", "PERSID", "BINPERSID",
}  # fmt: skip


def test_no_instruction_is_new_to_us() -> None:
    """A later Python may have more of them, which somebody has to look at."""
    from zoo.pickles import _Unpickler

    theirs: dict[int, Any] = pickle._Unpickler.dispatch  # type: ignore[attr-defined]
    kept = {code for code, method in _Unpickler.dispatch.items() if theirs.get(code) is method}
    names = {ord(operation.code): operation.name for operation in pickletools.opcodes}
    assert {names[code] for code in kept} == PLAIN_INSTRUCTIONS


class Canary:
    """Notes whatever is done to it."""

    seen: ClassVar[list[str]] = []

    def __new__(cls, *rest: Any) -> "Canary":
        Canary.seen.append("new")
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        Canary.seen.append(f"set {name}")

    def __setstate__(self, state: Any) -> None:
        Canary.seen.append("setstate")

    def __reduce_ex__(self, protocol: Any) -> Any:
        Canary.seen.append("reduce")
        return Canary, ()


@pytest.fixture
def canary() -> Iterator[bytes]:
    """Its name in a pickle; it is there to be found, and has an extension code, whose object is cached."""
    module = sys.modules[__name__] = sys.modules.get(__name__) or type(sys)(__name__)
    module.Canary = Canary  # type: ignore[attr-defined]
    Canary.seen.clear()
    copyreg.add_extension(__name__, "Canary", 200)
    yield f"c{__name__}\nCanary\n".encode()
    copyreg.remove_extension(__name__, "Canary", 200)


STATE = b"}X\x01\x00\x00\x00aK\x01s"
REACHES = {
    "REDUCE": b"%s)R.",
    "NEWOBJ": b"%s)\x81.",
    "NEWOBJ_EX": b"%s)}\x92.",
    "OBJ": b"(%so.",
    "INST": b"(i%s.",
    "a call of what a call gave": b"%s)R)R.",
    "state": b"%s)R" + STATE + b"b.",
    "state of slots": b"%s)RN" + STATE + b"\x86b.",
    "state of a class": b"%s" + STATE + b"b.",
    "items": b"%s)R(NNe.",
    "one item": b"%s)RNa.",
    "pairs": b"%s)R(NNu.",
    "set items": b"%s)R(N\x90.",
    "as a key": b"}%s)RNs.",
    "in a set": b"(%s)R\x91.",
}


@pytest.mark.parametrize("name", REACHES)
def test_instructions_that_reach_objects_reach_none(name: str, canary: bytes) -> None:
    data = b"\x80\x04" + REACHES[name].replace(b"%s", canary[1:] if name == "INST" else canary)
    value = read(data)
    assert isinstance(value, Inert | Global | dict | frozenset) and Canary.seen == []
    if name not in (
        "a call of what a call gave",
        "items",
        "one item",
        "pairs",
        "set items",
        "state of a class",
    ):
        pickle.loads(data)
        assert Canary.seen  # it would have been reached


@pytest.mark.parametrize("code", [b"\x82\xc8", b"\x83\xc8\x00", b"\x84\xc8\x00\x00\x00"])
@pytest.mark.parametrize("cached", [False, True])
def test_extension_codes_are_refused(code: bytes, cached: bool, canary: bytes) -> None:
    data = b"\x80\x02" + code + b")R."
    if cached:
        pickle.loads(data)
        Canary.seen.clear()
    before = dict(copyreg._extension_cache)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="extension code"):
        read(data)
    assert copyreg._extension_cache == before and Canary.seen == []  # type: ignore[attr-defined]


class Real:
    """What a caller puts into a pickle's values."""

    def __init__(self) -> None:
        self.size = 1

    def append(self, *rest: Any) -> None:
        raise AssertionError("it was reached")

    extend = add = __setitem__ = __setstate__ = __call__ = append


@pytest.mark.parametrize("made", [b"cx\ny\n)R", b"NQ"])
@pytest.mark.parametrize("state", [STATE, b"N" + STATE + b"\x86", b"X\x01\x00\x00\x00a"])
def test_no_state_is_set_on_what_the_caller_gave(made: bytes, state: bytes) -> None:
    real = Real()
    value = read(b"\x80\x02" + made + state + b"b.", call=lambda *_: real, persistent=lambda _: real)
    assert value is real and vars(real) == {"size": 1}


@pytest.mark.parametrize("items", [b"Na", b"(Ne", b"NNs", b"(NNu", b"(N\x90"])
def test_nothing_is_put_into_what_the_caller_gave(items: bytes) -> None:
    with pytest.raises(ValueError, match="puts items into a value of type Real"):
        read(b"\x80\x04NQ" + items + b".", persistent=lambda _: Real())
    called = read(b"\x80\x04NQ)R.", persistent=lambda _: Real())
    assert isinstance(called, Inert)


@pytest.mark.parametrize("data", [b"]" + STATE + b"b.", b"}" + STATE + b"b.", b"\x8f" + STATE + b"b."])
def test_plain_values_have_no_state(data: bytes) -> None:
    """An OrderedDict with attributes (as PyTorch's state dicts are) is its items."""
    assert read(b"\x80\x04" + data) in ([], {}, set())


@pytest.mark.parametrize("instruction", [b"\x97", b"C\x01x\x98", b"\x96" + struct.pack("<Q", 1) + b"x\x98"])
def test_buffers_are_refused(instruction: bytes) -> None:
    with pytest.raises(ValueError, match="or a buffer"):
        read(b"\x80\x05" + instruction + b".")


def test_records_are_keys_by_their_identity() -> None:
    data = b"\x80\x04}(cx\ny\n)RK\x01cx\ny\n)RK\x02cx\ny\nK\x03cx\ny\nK\x04u."
    first, second, name = value = read(data)
    assert list(value.values()) == [1, 2, 4] and first is not second and name == ("x", "y")


DEPTH = 100  # levels of tuples, each of which holds the one before twice
SHARED = b")" + b"q\x00h\x00\x86" * DEPTH


@pytest.mark.parametrize(
    "data",
    [b"}" + SHARED + b"Ns.", b"}(" + SHARED + b"Nu.", b"(" + SHARED + b"Nd.", b"(" + SHARED + b"\x91.",
     b"\x8f(" + SHARED + b"\x90.", b"\x8f((K\x01\x91\x90."],
    ids=["SETITEM", "SETITEMS", "DICT", "FROZENSET", "ADDITEMS", "set of sets"],
)  # fmt: skip
def test_no_key_takes_long_to_hash(data: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"a value of type (tuple|frozenset) as a key"):
        read(b"\x80\x04" + data)
    assert read(b"\x80\x04" + SHARED + b".")[0]
    assert time.monotonic() - started < 10  # its hash takes 2^100 steps


def test_deep_nests_are_no_danger() -> None:
    depth = 300_000
    for data in (b"]" * depth + b"a" * (depth - 1), b")" + b"\x85" * depth, b"cx\ny\n" + b")R" * depth):
        read(b"\x80\x04" + data + b".")


def claim(operation: bytes, form: str, size: int, content: bytes = b"few bytes") -> bytes:
    return b"\x80\x04" + operation + struct.pack(form, size) + content


BOMBS = {
    "BINBYTES8": claim(b"\x8e", "<Q", 1 << 33),
    "BINBYTES8 of all there is": claim(b"\x8e", "<Q", 1 << 62),
    "BINBYTES": claim(b"B", "<I", (1 << 32) - 1),
    "BYTEARRAY8": claim(b"\x96", "<Q", 1 << 33),
    "BINUNICODE8": claim(b"\x8d", "<Q", 1 << 33),
    "BINUNICODE": claim(b"X", "<I", (1 << 32) - 1),
    "BINSTRING": claim(b"T", "<i", (1 << 31) - 1),
    "LONG4": claim(b"\x8b", "<i", (1 << 31) - 1),
    "FRAME": claim(b"\x95", "<Q", 1 << 40, b"]"),
    "frames": claim(b"\x95", "<Q", 1 << 40, b"") * 1000,
    "LONG_BINPUT": b"\x80\x04Nr" + struct.pack("<I", (1 << 32) - 1),
    "PUT": b"\x80\x04Np99999999999999\n",
    "LONG": b"L" + b"9" * 1_000_000 + b"L\n.",
    "DUP": b"\x80\x04]" + b"2" * 1_000_000,
    "MARK": b"\x80\x04" + b"(" * 100_000,
    "memo": b"\x80\x04]" + b"\x94" * 200_000,
    "tuples": b"\x80\x04" + SHARED * 3000,
    "lists": b"\x80\x04]" + b"q\x00(h\x00h\x00h\x00h\x00l" * 20_000,
    "one list in itself": b"\x80\x04]q\x00(" + b"h\x00" * 300_000 + b"e",
    "empty sets": b"\x80\x04" + b"\x8f" * 300_000,
    "records": b"\x80\x04cx\ny\nq\x00" + b"h\x00)R" * 100_000,
    "names": b"\x80\x04" + b"".join(b"cx\n%d\n" % k for k in range(50_000)),
}
CODE = """
import sys, time
from zoo.pickles import read_pickle
try:
    with open(sys.argv[1], "rb") as file:
        read_pickle(file)
except ValueError as error:
    print(error)
# not getrusage, whose peak a process inherits from the one that started it
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_in_proportion_to_the_file(name: str, tmp_path: Path) -> None:
    """Each is cut short, so that it is refused once all of it was read."""
    path = tmp_path / "x.pkl"
    path.write_bytes(BOMBS[name])
    done = subprocess.run([sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, check=True)
    message, peak = done.stdout.splitlines()
    assert "cut short or not a pickle" in message or "4300 digits" in message
    assert int(peak) * 1024 < (40 << 20) + 400 * len(BOMBS[name])


def test_long_values_are_read_in_pieces(tmp_path: Path) -> None:
    long = b"x" * (3 << 20)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([long, bytearray(long), long.decode()], 5))
    with open(tmp_path / "x.pkl", "rb") as file:
        assert read_pickle(file) == [long, bytearray(long), long.decode()]
