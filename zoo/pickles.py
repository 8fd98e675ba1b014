"""Pickles read inertly: nothing is imported, called or set on an object, whatever the file says.

This is the standard library's unpickler with those instructions replaced that reach code: a name stays a
`Global`; what would have been called or made becomes an `Inert`, which alone keeps a state; extension codes
are refused. Whatever lengths and numbers a file claims, reading it takes memory in proportion to its length.

It is the unpickler in Python, which joblib and dill build upon, too. Overriding ``find_class`` of the one in
C would not do: it makes a memo as long as the largest index in the file, hashes a key of tuples that share
their parts in 2^n steps, sets attributes of any value, and keeps what an extension code stood for. To check
all that beforehand takes a stack of its own, and twice the time.
"""

import pickle
import reprlib
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

Stream = Any  # a file, or what reads like one: read, readline

_Base: Any = pickle._Unpickler  # has no types
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))
_DAMAGE = (
    *(pickle.UnpicklingError, struct.error, EOFError, LookupError, AttributeError, TypeError, OverflowError),
    UnicodeError,
)
_PIECE = 1 << 20  # bytes that are asked for at once


class Global(NamedTuple):
    """A name that a pickle refers to; it was not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """A record of an object that a pickle would have made, without behavior.

    Attributes:
        made_by: What would have been called.
        arguments: With what.
        state: What would have been set on the object.
        items: What would have been appended or added to it.
        pairs: What would have been set in it, by key.
    """

    __slots__ = ("arguments", "items", "made_by", "pairs", "state")

    def __init__(self, made_by: Any, arguments: tuple[Any, ...]) -> None:
        self.made_by, self.arguments = made_by, arguments
        self.state: Any = None
        self.items: list[Any] = []
        self.pairs: dict[Any, Any] = {}

    def extend(self, values: list[Any]) -> None:
        """Records what would have been appended."""
        self.items.extend(values)

    def append(self, value: Any) -> None:
        """Records what would have been appended, or added to a set."""
        self.items.append(value)

    add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[key] = value


def read_pickle(
    stream: Stream,
    call: Callable[[Global, tuple[Any, ...]], Any] = lambda function, arguments: NotImplemented,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    r"""Reads one pickle; the stream stands behind its end afterwards.

    Args:
        stream: The bytes.
        call: Says what the call of a name with arguments stands for; `NotImplemented` for an `Inert`.
        persistent: Says what a persistent id stands for; None where there may be none.

    Returns:
        Plain values, lists, tuples, dicts, sets, `Global` and `Inert`, and what ``call`` and ``persistent``
        returned.

    Raises:
        ValueError: it is not a pickle, is cut short, or holds what has no place in a checkpoint.

    >>> import io
    >>> read = read_pickle(io.BytesIO(b"cos\nsystem\n(Vrm -rf /\ntR."))
    >>> str(read.made_by), read.arguments
    ('os.system', ('rm -rf /',))
    """
    try:
        return _Unpickler(_InPieces(stream), call, persistent).load()
    # What the unpickler raises at instructions that do not fit each other, or stop in the middle of one.
    except _DAMAGE as error:
        raise ValueError(f"it is cut short or not a pickle ({type(error).__name__}: {error})") from error


class _InPieces:
    """A stream that does not set memory aside for as many bytes as it is asked for, but for what is there."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.readline = stream, stream.readline

    def read(self, size: int) -> bytes:
        if size <= _PIECE:
            return self.stream.read(size)
        pieces = []
        while size > 0 and (piece := self.stream.read(min(size, _PIECE))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def _checked(code: bytes, target: int | None = None, keys: slice = slice(0)) -> Callable[[Any], None]:
    """An instruction that puts values into another, or hashes some, with both looked at first.

    Args:
        code: The instruction.
        target: Place of what it changes; 0 for what lies below the mark, None if it makes something new.
        keys: Places of what it hashes, in the part of the stack above the mark.
    """
    load = _Base.dispatch[code[0]]

    def checked(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            check_key(key)
        if target is not None:
            changed = unpickler.stack[target] if target else unpickler.metastack[-1][-1]
            if not isinstance(changed, list | dict | set | Inert):
                raise ValueError(
                    f"it puts items into a value of type {type(changed).__name__}: it is damaged"
                )
        load(unpickler)

    return checked


class _Unpickler(_Base):
    """The unpickler with other instructions for what could reach code, or take more than is there."""

    def __init__(self, stream: _InPieces, call: Any, persistent: Any) -> None:
        super().__init__(stream, encoding="latin-1")  # text of Python 2 is bytes, a character each
        self.call, self.persistent = call, persistent

    def find_class(self, module: str, name: str) -> Global:
        return Global(module, name)

    def persistent_load(self, key: Any) -> Any:
        if self.persistent is None:
            raise ValueError("it refers to data outside of it (a persistent id), of which there are none")
        return self.persistent(key)

    def _instantiate(self, function: Any, arguments: list[Any]) -> None:  # of INST and OBJ
        self.stack += [function, tuple(arguments)]
        self.make()

    def make(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple):
            raise ValueError(f"it calls something with {type(arguments).__name__} for arguments")
        result = self.call(function, arguments) if isinstance(function, Global) else NotImplemented
        self.stack.append(Inert(function, arguments) if result is NotImplemented else result)

    def make_with_keywords(self) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Inert(function, (*arguments, keywords)))

    def set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        # On anything but an Inert (a dict with attributes, a tensor with hooks) attributes say nothing.
        if isinstance(target, Inert):
            target.state = state

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def refuse(self) -> None:
        raise ValueError("it uses an extension code or a buffer, which have no place in a checkpoint")

    dispatch = _Base.dispatch | {
        pickle.REDUCE[0]: make,
        pickle.NEWOBJ[0]: make,
        pickle.NEWOBJ_EX[0]: make_with_keywords,
        pickle.BUILD[0]: set_state,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.APPEND[0]: _checked(pickle.APPEND, target=-2),
        pickle.APPENDS[0]: _checked(pickle.APPENDS, target=0),
        pickle.SETITEM[0]: _checked(pickle.SETITEM, target=-3, keys=slice(-2, -1)),
        pickle.SETITEMS[0]: _checked(pickle.SETITEMS, target=0, keys=slice(0, None, 2)),
        pickle.DICT[0]: _checked(pickle.DICT, keys=slice(0, None, 2)),
        pickle.ADDITEMS[0]: _checked(pickle.ADDITEMS, target=0, keys=slice(None)),
        pickle.FROZENSET[0]: _checked(pickle.FROZENSET, keys=slice(None)),
    }
    dispatch |= dict.fromkeys(
        pickle.EXT1 + pickle.EXT2 + pickle.EXT4 + pickle.NEXT_BUFFER + pickle.READONLY_BUFFER, refuse
    )


def check_key(key: Any) -> None:
    """Refuses a key of a dict or set that takes long to hash; an object stands for itself by its identity.

    Raises:
        ValueError: it is not a plain value, an `Inert`, or a tuple of those.
    """
    parts = key if isinstance(key, tuple) and not isinstance(key, Global) else (key,)
    if not all(isinstance(part, (*_PLAIN_KEYS, Global, Inert)) for part in parts):
        raise ValueError(f"it uses a value of type {type(key).__name__} as a key")


def describe(value: Any) -> str:
    """A value in at most 60 characters, for messages: in full, lists that share their parts take 2^n of them.

    >>> describe(Inert(Inert(Global("torch", "device"), ()), ())), describe(list(range(100)))
    ('an object of torch.device', '[0, 1, 2, 3, 4, 5, ...]')
    """
    kind = "an object of " if isinstance(value, Inert) else ""
    while isinstance(value, Inert):
        value = value.made_by
    return kind + (str(value) if isinstance(value, Global) else reprlib.repr(value))[:60]
