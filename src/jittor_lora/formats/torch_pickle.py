"""The pickles that `torch.save` writes, read by an interpreter of our own that can do nothing else.

A pickle is a program for a stack machine. Python's own reader imports any function that the program names, and calls
it. Here the opcodes that weights need (numbered and described in Python's `pickletools`) are carried out on strings,
numbers, tuples, lists and dictionaries, and a name is only a key of `_NAMES`, a table of what may be built: storages,
tensors, parameters, sizes and ordered dictionaries. Any other name is refused; no name is ever imported or called.
"""

from __future__ import annotations

import struct
from typing import Any, Callable, NamedTuple, Sequence, Union

from jittor_lora.formats.tensor_file import MOST_DIMENSIONS

# A model's pickle takes some 40 opcodes and 300 bytes per tensor; the largest models have a few thousand tensors.
LARGEST = 32 << 20  # bytes
MOST_OPCODES = 1_000_000
LONGEST_TEXT = 1 << 16  # bytes
LONGEST_NAME = 1 << 10  # bytes
SHOWN_NAMES = 10
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}


class PickleError(ValueError):
    """The pickle is damaged or holds what weights do not need; the message is what was found, part of a sentence."""


class Storage(NamedTuple):
    """A one-dimensional array in the file: safetensors' name of its type, its key, its number of elements."""

    dtype: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Loaded(NamedTuple):
    """
    Attributes:
        value: `Tensor`, str, int, float, bool, None, and tuples, lists and dictionaries of these; may contain itself.
        storages: all that it mentions, by key.
        end: position after the pickle.
    """

    value: Any
    storages: dict[str, Storage]
    end: int


def load(data: Sequence[int], start: int = 0) -> Loaded:
    """Read the pickle in `data`, bytes or a mapped file, at `start`.

    Raises:
        PickleError: see there; of names that are not needed, all are listed.
    """
    machine = _Machine(data, start)
    try:
        value = machine.run()
    except PickleError:
        if not machine.refused:
            raise
    if machine.refused:
        names = list(machine.refused)
        rest = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        raise PickleError(f"{', '.join(names[:SHOWN_NAMES])}{rest}, which no weights need and which is never run")
    return Loaded(value, machine.storages, machine.at)


class _Name(NamedTuple):
    """A name in the pickle, and what it stands for here: see `_NAMES`."""

    name: str
    builder: Union[str, Callable[[str, tuple], Any], None] = None


_REFUSED = _Name("")  # stands for whatever a refused name would have made


class _Machine:
    """
    Attributes:
        refused: names that weights do not need, as keys.
    """

    def __init__(self, data: Sequence[int], start: int):
        self.data, self.at, self.end = data, start, min(len(data), start + LARGEST)
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.refused: dict[str, None] = {}

    def run(self) -> Any:
        for _ in range(MOST_OPCODES):
            code = self.take(1)
            if code == b".":
                if len(self.stack) != 1 or self.marks:
                    raise PickleError("a pickle that ends with something unfinished")
                return self.stack[0]
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise PickleError(f"the opcode 0x{code.hex()}, which no weights need")
            operation(self)
        raise PickleError(f"a pickle of more than {MOST_OPCODES:,} opcodes")

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise PickleError("a pickle that breaks off")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str, size: int) -> Any:
        return struct.unpack(code, self.take(size))[0]

    def text(self, code: str, size: int) -> str:
        length = self.number(code, size)
        if length > LONGEST_TEXT:
            raise PickleError(f"a text of {length:,} bytes; expected at most {LONGEST_TEXT:,}")
        return _decoded(self.take(length))

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, min(self.end, self.at + LONGEST_NAME))
        if end < 0:
            raise PickleError("a name that does not end")
        line = self.take(end + 1 - self.at)
        return _decoded(line[:-1])

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("a pickle that takes more than it has")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise PickleError("a pickle that takes more than it has")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("a pickle without a mark where it needs one")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise PickleError("a pickle that recalls what it has not stored")
        self.push(self.memo[key])

    def put(self, key: int) -> None:
        self.memo[key] = self.top()

    def extend(self, items: list[Any]) -> None:
        holder = self.top()
        if type(holder) is list:
            holder.extend(items)
        elif holder is not _REFUSED:
            raise PickleError("items for something that is no list")

    def update(self, items: list[Any]) -> None:
        holder = self.top()
        if holder is _REFUSED:
            return
        # Other keys could be nested deeply, and hashing them take forever.
        if type(holder) is not dict or len(items) % 2 or not all(type(key) in (str, int) for key in items[::2]):
            raise PickleError("a dictionary whose keys are neither texts nor numbers")
        holder.update(zip(items[::2], items[1::2]))

    def name(self, name: str) -> None:
        builder = _NAMES.get(name)
        if builder is None:
            self.refused[name[:80]] = None
        self.push(_REFUSED if builder is None else _Name(name, builder))

    def name_of_two(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise PickleError("a name that is no text")
        self.name(f"{module}.{name}")

    def build(self) -> None:
        """Call what is second on the stack with the tuple on top."""
        arguments, called = self.pop(), self.pop()
        if called is _REFUSED:
            self.push(_REFUSED)
        elif type(called) is not _Name or type(called.builder) is str or type(arguments) is not tuple:
            raise PickleError("a call of something that is no name")
        else:
            self.push(called.builder(called.name, arguments))

    def set_state(self) -> None:
        """Attributes of a state dict, such as the versions of its modules, which are left out."""
        self.pop()
        if type(self.top()) is not dict and self.top() is not _REFUSED:
            raise PickleError("attributes of something that is no dictionary")

    def persistent(self) -> None:
        """A storage: ("storage", its type, its key, the device it was on, its number of elements, and in older files a
        view, always None)."""
        found = self.pop()
        if type(found) is not tuple or len(found) not in (5, 6) or found[0] != "storage" or (
                found[5:] not in ((), (None,))):
            raise PickleError("a reference that is no storage")
        kind, key, count = found[1], found[2], found[4]
        if type(kind) is not _Name or type(kind.builder) is not str:
            raise PickleError("a storage of unknown type")
        if type(key) is not str or not _is_size(count):
            raise PickleError("a storage without a key or a size")
        storage = Storage(kind.builder, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise PickleError(f"two different storages of one key, {key[:20]!r}")
        self.push(storage)


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PickleError("a text that is not UTF-8") from error


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _dictionary(name: str, arguments: tuple) -> dict:
    if arguments:
        raise PickleError(f"{name} of something")
    return {}


def _size(name: str, arguments: tuple) -> tuple:
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise PickleError(f"{name} of something other than numbers")
    return arguments[0]


def _parameter(name: str, arguments: tuple) -> Tensor:
    if len(arguments) != 3 or type(arguments[0]) is not Tensor:
        raise PickleError(f"{name} of something that is no tensor")
    return arguments[0]


def _tensor(name: str, arguments: tuple) -> Tensor:
    """Storage, offset, size and strides, and what concerns training alone."""
    if len(arguments) not in (4, 6, 7) or type(arguments[0]) is not Storage:
        raise PickleError(f"{name} of something other than a storage")
    storage, offset, shape, strides = arguments[:4]
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or (
            len(shape) > MOST_DIMENSIONS or not all(map(_is_size, (offset, *shape, *strides)))):
        raise PickleError("a tensor whose offset, size and strides are not whole numbers that fit together")
    return Tensor(storage, offset, shape, strides)


# What a name stands for: a function that builds it, or the type of a storage.
_NAMES: dict[str, Union[str, Callable[[str, tuple], Any]]] = {
    **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
    "collections.OrderedDict": _dictionary,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}

_OPERATIONS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.marks.append(len(m.stack)),  # MARK
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("<B", 1)),  # BININT1
    b"M": lambda m: m.push(m.number("<H", 2)),  # BININT2
    b"J": lambda m: m.push(m.number("<i", 4)),  # BININT
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number("<B", 1)), "little", signed=True)),  # LONG1
    b"G": lambda m: m.push(m.number(">d", 8)),  # BINFLOAT
    b"\x8c": lambda m: m.push(m.text("<B", 1)),  # SHORT_BINUNICODE
    b"X": lambda m: m.push(m.text("<I", 4)),  # BINUNICODE
    b"U": lambda m: m.push(m.text("<B", 1)),  # SHORT_BINSTRING, of Python 2
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"t": lambda m: m.push(tuple(m.since_mark())),  # TUPLE
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.extend([m.pop()]),  # APPEND
    b"e": lambda m: m.extend(m.since_mark()),  # APPENDS
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.update([m.pop(), m.pop()][::-1]),  # SETITEM
    b"u": lambda m: m.update(m.since_mark()),  # SETITEMS
    b"q": lambda m: m.put(m.number("<B", 1)),  # BINPUT
    b"r": lambda m: m.put(m.number("<I", 4)),  # LONG_BINPUT
    b"\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
    b"h": lambda m: m.get(m.number("<B", 1)),  # BINGET
    b"j": lambda m: m.get(m.number("<I", 4)),  # LONG_BINGET
    b"c": lambda m: m.name(f"{m.line()}.{m.line()}"),  # GLOBAL
    b"\x93": lambda m: m.name_of_two(),  # STACK_GLOBAL
    b"R": lambda m: m.build(),  # REDUCE
    b"\x81": lambda m: m.build(),  # NEWOBJ
    b"b": lambda m: m.set_state(),  # BUILD
    b"Q": lambda m: m.persistent(),  # BINPERSID
}
