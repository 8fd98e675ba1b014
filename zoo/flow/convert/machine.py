"""Reads pickles without executing them.

A pickle is a program for a small stack machine, two of whose instructions import objects and call them. This
is that machine without the two: a name stays a `Global`, a call of something unknown becomes an `Inert` that
records what would have been called, and nothing is ever imported, called, or set on an object that Python
could look at. What PyTorch's own helpers would have built are read as tensors' descriptions
(`zoo.flow.convert.tensors`).

Whatever the file says, reading it costs memory in proportion to its length.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

Stream = Any  # a file, or what reads like one: read, readline, tell

PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


class Global(NamedTuple):
    """A name that the pickle refers to; it was not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """What stands where the pickle would have made an object: a record of it, without behavior.

    Attributes:
        made_by: What would have been called.
        arguments: With what.
        state: What would have been set on the object.
        items: What would have been appended to it.
        pairs: What would have been set in it, by key.
    """

    __slots__ = ("arguments", "items", "made_by", "pairs", "state")

    def __init__(self, made_by: Any, arguments: tuple[Any, ...]) -> None:
        self.made_by, self.arguments = made_by, arguments
        self.state: Any = None
        self.items: list[Any] = []
        self.pairs: dict[Any, Any] = {}


MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSH = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    ]
)


def read_pickle(
    stream: Stream,
    call: Callable[[Global, tuple[Any, ...]], Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle; the stream stands behind its end afterwards.

    Args:
        stream: The bytes.
        call: Says what the call of a name with arguments stands for; `NotImplemented` for an `Inert`.
        persistent: Says what a persistent id stands for; None where there may be none.

    Returns:
        Plain values, lists, tuples, dicts, sets, `Global` and `Inert`, and what ``call`` and ``persistent``
        returned.

    Raises:
        ValueError: it is no pickle, is cut short, or holds what has no place in a checkpoint.
    """
    machine = _Machine(call, persistent)
    pieces: Stream = _InPieces(stream)
    operations = pickletools.genops(pieces)
    while True:
        try:
            operation, argument, _ = next(operations)
        except StopIteration:
            raise ValueError("it ends without a STOP") from None
        # What pickletools raises at bytes that are no pickle, or stop in the middle of one.
        except (ValueError, struct.error, OverflowError, IndexError) as error:
            raise ValueError(f"it is cut short or not a pickle ({error})") from error
        if operation.name == "STOP":
            return machine.pop()
        machine.step(operation.name, argument)


class _InPieces:
    """A stream that does not set memory aside for as many bytes as it is asked for, but for what is there."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.readline, self.tell = stream.readline, stream.tell

    def read(self, size: int) -> bytes:
        pieces = []
        while size > 0 and (piece := self.stream.read(min(size, 1 << 20))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


class _Machine:
    def __init__(self, call: Callable[..., Any], persistent: Callable[[Any], Any] | None) -> None:
        self.call, self.persistent = call, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif handler := getattr(self, f"do_{name.lower()}", None):
            handler(argument)
        else:
            raise ValueError(f"it uses the instruction {name}, which has no place in a checkpoint")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise ValueError("it takes a value from an empty stack: it is damaged")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise ValueError("it looks for a mark that is not there: it is damaged")

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def make(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise ValueError(f"it calls something with {type(arguments).__name__} for arguments")
        result = self.call(function, arguments) if isinstance(function, Global) else NotImplemented
        self.stack.append(Inert(function, arguments) if result is NotImplemented else result)

    def do_proto(self, version: int) -> None:
        if version > 5:
            raise ValueError(f"it is of protocol {version}, and 5 is the latest known")

    def do_frame(self, _: Any) -> None:
        """Frames group bytes; they mean nothing."""

    def do_mark(self, _: Any) -> None:
        self.stack.append(MARK)

    def do_pop(self, _: Any) -> None:
        if not self.stack:
            raise ValueError("it takes a value from an empty stack: it is damaged")
        self.stack.pop()

    def do_pop_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def do_dup(self, _: Any) -> None:
        self.stack.append(self.top())

    def do_put(self, index: int) -> None:
        self.memo[index] = self.top()

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def do_get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"it refers to value {index}, which it never stored: it is damaged")
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def do_empty_set(self, _: Any) -> None:
        self.stack.append(set())

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_list(self, _: Any) -> None:
        self.stack.append(self.pop_to_mark())

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def do_tuple3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def do_dict(self, _: Any) -> None:
        values = self.pop_to_mark()
        self.stack.append({})
        self._set(values)

    def do_frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(map(plain_key, self.pop_to_mark())))

    def do_append(self, _: Any) -> None:
        self._extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self._extend(self.pop_to_mark())

    def do_additems(self, _: Any) -> None:
        self._extend(self.pop_to_mark())

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def do_setitems(self, _: Any) -> None:
        self._set(self.pop_to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Inert):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(map(plain_key, values))
        else:
            raise ValueError(f"it appends to a value of type {type(target).__name__}: it is damaged")

    def _set(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Inert):
            target = target.pairs
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError(f"it sets items of a value of type {type(target).__name__}: it is damaged")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[plain_key(key)] = value

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Global(module, name))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("it names an object by something that is no text: it is damaged")
        self.stack.append(Global(module, name))

    def do_reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.make(function, arguments)

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        keywords, arguments, kind = self.pop(), self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise ValueError(f"it calls something with {type(arguments).__name__} for arguments")
        self.stack.append(Inert(kind, (*arguments, keywords)))

    def do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.make(Global(module, name), tuple(self.pop_to_mark()))

    def do_obj(self, _: Any) -> None:
        kind, *arguments = self.pop_to_mark() or [None]
        self.make(kind, tuple(arguments))

    def do_build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        # On anything but an Inert (a dict with attributes, a tensor with hooks) attributes say nothing.
        if isinstance(target, Inert):
            target.state = state

    def do_persid(self, argument: Any) -> None:
        if self.persistent is None:
            raise ValueError("it refers to data outside of it (a persistent id), of which there are none")
        self.stack.append(self.persistent(argument))

    def do_binpersid(self, _: Any) -> None:
        self.do_persid(self.pop())


def plain_key(key: Any) -> Any:
    """A key of a dict or set; one of an object stands for itself by its identity.

    Raises:
        ValueError: it cannot be a key, or takes too long to be one (a tuple of tuples of ...).
    """
    parts = key if isinstance(key, tuple) and not isinstance(key, Global) else (key,)
    if not all(isinstance(part, (*PLAIN_KEYS, Global, Inert)) for part in parts):
        raise ValueError(f"it uses a value of type {type(key).__name__} as a key")
    return key
