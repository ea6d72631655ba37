"""Read the pickle inside a PyTorch file without executing it.

Python's unpickler imports and calls whatever a file names. This one supports only the instructions
that `torch.save` emits (protocol 2, and their equivalents in protocols 3 to 5) and the names in
`torch_names.py`; anything else is refused. The result is a tree without cycles, and time and memory
are bounded by the constants below.

Source: Python's `pickletools`.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mlx_vits.checkpoints.torch_names import (
    BUILDERS,
    HPARAMS,
    NAMES,
    STORAGES,
    Attributes,
    GlobalName,
    StorageRef,
    TensorRef,
    damaged,
    is_count,
    refuse_name,
)

# A full-size v2 file has 26,000 instructions in 90 kB, a G_*.pth with optimizer state five times
# that.
MAX_PICKLE_BYTES = 16 << 20
_MAX_INSTRUCTIONS = 500_000
_MAX_NODES = 250_000
_MAX_DEPTH = 64

_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}
_CODE_NAMES = {code: name for name, code in _CODES.items()}
_HANDLERS: dict[int, Callable[[_Reader], None]] = {}

Method = TypeVar("Method", bound=Callable[..., None])


def _on(*names: str) -> Callable[[Method], Method]:
    """Register a method as the handler of these instructions."""

    def register(method: Method) -> Method:
        for name in names:
            _HANDLERS[_CODES[name]] = method
        return method

    return register


class _Reader:
    """A stack machine for the instructions in `_HANDLERS`; all others are refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute the whole pickle and return the object it describes."""
        for _ in range(_MAX_INSTRUCTIONS):
            code = self._take(1)[0]
            if code == _CODES["STOP"]:
                if len(self._stack) != 1 or self._marks or self._at != len(self._data):
                    raise damaged("its description does not end properly")
                return self._stack[0]
            handler = _HANDLERS.get(code)
            if handler is None:
                name = _CODE_NAMES.get(code, f"{code:#04x}")
                raise damaged(f"it uses the pickle instruction {name}")
            handler(self)
        raise damaged("its description is too long")

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise damaged("its description ends too early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise damaged("its description ends too early")
        line = self._take(end - self._at)
        self._at += 1
        return self._decode(line)

    @staticmethod
    def _decode(raw: bytes) -> str:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise damaged("a text is not UTF-8") from error

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _push_number(self, form: str) -> None:
        self._push(self._number(form))

    def _push_bytes(self, form: str) -> None:
        self._push(self._take(self._number(form)))

    def _push_text(self, form: str) -> None:
        self._push(self._decode(self._take(self._number(form))))

    def _push_tuple(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise damaged("its description has a missing part")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise damaged("its description has a missing part")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _push_global(self, module: str, name: str) -> None:
        full_name = f"{module}.{name}"
        if full_name not in NAMES:
            refuse_name(full_name)
        self._push(GlobalName(full_name))

    @_on("PROTO")
    def _protocol(self) -> None:
        if not 2 <= self._number("<B") <= 5:
            raise damaged("its pickle protocol is not one of 2 to 5")

    @_on("FRAME")
    def _frame(self) -> None:
        self._take(8)  # length of the frame, needed only by streaming readers

    @_on("MARK")
    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    @_on("LONG1")
    def _long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    @_on("BINPUT")
    def _put_short(self) -> None:
        self._remember(self._number("<B"))

    @_on("LONG_BINPUT")
    def _put_long(self) -> None:
        self._remember(self._number("<I"))

    @_on("MEMOIZE")
    def _memoize(self) -> None:
        self._remember(len(self._memo))

    def _remember(self, index: int) -> None:
        value = self._pop()
        self._push(value)
        self._memo[index] = value

    @_on("BINGET")
    def _get_short(self) -> None:
        self._recall(self._number("<B"))

    @_on("LONG_BINGET")
    def _get_long(self) -> None:
        self._recall(self._number("<I"))

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise damaged("it refers to something it does not hold")
        self._push(self._memo[index])

    @_on("EMPTY_LIST")
    def _empty_list(self) -> None:
        self._push([])

    @_on("EMPTY_DICT")
    def _empty_dict(self) -> None:
        self._push({})

    @_on("TUPLE")
    def _tuple(self) -> None:
        self._push(tuple(self._pop_to_mark()))

    def _append(self, items: list[Any]) -> None:
        target = self._pop()
        if type(target) is not list:
            raise damaged("it appends to something that is no list")
        target.extend(items)
        self._push(target)

    @_on("APPEND")
    def _append_one(self) -> None:
        self._append([self._pop()])

    @_on("APPENDS")
    def _append_many(self) -> None:
        self._append(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._pop()
        if type(target) is Attributes and target.state is None:
            target.state = {}  # an HParams variant that subclasses dict
        table = target.state if type(target) is Attributes else target
        if type(table) is not dict or len(items) % 2:
            raise damaged("it fills something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys could be crafted to collide, or to take forever to hash.
            if type(key) is not str and not is_count(key):
                raise damaged("a dictionary has keys that are neither text nor counts")
            table[key] = value
        self._push(target)

    @_on("SETITEM")
    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    @_on("SETITEMS")
    def _set_many(self) -> None:
        self._set(self._pop_to_mark())

    @_on("GLOBAL")
    def _global(self) -> None:
        module = self._line()
        self._push_global(module, self._line())

    @_on("STACK_GLOBAL")
    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise damaged("a name is not text")
        self._push_global(module, name)

    @_on("INST")
    def _instance(self) -> None:
        # Parsed only to name it: PyTorch never emits this instruction.
        module = self._line()
        refuse_name(f"{module}.{self._line()}")

    @_on("REDUCE")
    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        builder = BUILDERS.get(function.name) if type(function) is GlobalName else None
        if builder is None or type(arguments) is not tuple:
            raise damaged("it calls something that is no function")
        self._push(builder(arguments))

    @_on("NEWOBJ")
    def _new_object(self) -> None:
        arguments, kind = self._pop(), self._pop()
        if type(kind) is not GlobalName or kind.name != HPARAMS or type(arguments) is not tuple:
            raise damaged("it makes an object of an unknown kind")
        if arguments:
            raise damaged("a configuration is described wrongly")
        self._push(Attributes())

    @_on("BUILD")
    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        if type(state) is not dict or type(target) not in (dict, Attributes):
            raise damaged("it sets attributes of something that has none")
        if type(target) is Attributes:
            if target.state is not None:
                raise damaged("a configuration is described twice")
            # Not copied: a small pickle could request endless copies of a large state.
            target.state = state
        self._push(target)

    @_on("BINPERSID")
    def _storage(self) -> None:
        """`("storage", kind, key, device, numel)`, the only persistent id that PyTorch uses."""
        parts = self._pop()
        if type(parts) is not tuple or len(parts) != 5:
            raise damaged("a storage is described wrongly")
        label, kind, key, device, numel = parts
        named = [type(part) is str for part in (label, key, device)]
        if not all(named) or label != "storage" or not is_count(numel):
            raise damaged("a storage is described wrongly")
        if type(kind) is not GlobalName or kind.name not in STORAGES:
            raise damaged("a storage is described wrongly")
        self._push(StorageRef(kind.name, key, numel))


_HANDLERS |= {
    _CODES["NONE"]: partial(_Reader._push, value=None),
    _CODES["NEWTRUE"]: partial(_Reader._push, value=True),
    _CODES["NEWFALSE"]: partial(_Reader._push, value=False),
    _CODES["EMPTY_TUPLE"]: partial(_Reader._push, value=()),
    _CODES["BININT"]: partial(_Reader._push_number, form="<i"),
    _CODES["BININT1"]: partial(_Reader._push_number, form="<B"),
    _CODES["BININT2"]: partial(_Reader._push_number, form="<H"),
    _CODES["BINFLOAT"]: partial(_Reader._push_number, form=">d"),
    _CODES["BINUNICODE"]: partial(_Reader._push_text, form="<I"),
    _CODES["SHORT_BINUNICODE"]: partial(_Reader._push_text, form="<B"),
    _CODES["BINBYTES"]: partial(_Reader._push_bytes, form="<I"),
    _CODES["SHORT_BINBYTES"]: partial(_Reader._push_bytes, form="<B"),
    _CODES["TUPLE1"]: partial(_Reader._push_tuple, count=1),
    _CODES["TUPLE2"]: partial(_Reader._push_tuple, count=2),
    _CODES["TUPLE3"]: partial(_Reader._push_tuple, count=3),
}


class _Plainer:
    """Converts the output of `_Reader` to plain values: a tree with arrays for tensors."""

    def __init__(self, read_tensor: Callable[[TensorRef], np.ndarray]) -> None:
        self._read_tensor = read_tensor
        self._nodes = 0

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Copy a value; shared parts are copied each time, so a cycle hits a bound."""
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise damaged("its contents are nested without end")
        kind = type(value)
        if kind is Attributes:
            return self.plain(value.state or {}, depth + 1)
        if kind is dict:
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if kind is list:
            return [self.plain(item, depth + 1) for item in value]
        if kind is tuple:
            return tuple(self.plain(item, depth + 1) for item in value)
        if kind is TensorRef:
            return self._read_tensor(value)
        if kind is GlobalName:
            refuse_name(value.name)
        if kind is StorageRef:
            raise damaged("it holds a storage outside any tensor")
        return value


def read_pickle(data: bytes, read_tensor: Callable[[TensorRef], np.ndarray]) -> Any:
    """Read the pickle of a PyTorch file without executing it.

    Args:
        data: the whole of `data.pkl`, of at most `MAX_PICKLE_BYTES`.
        read_tensor: returns the array of a tensor; called in the order of the tree, after all
            instructions have been accepted.

    Returns:
        dict, list, tuple, str, int, float, bool, None, bytes, and what `read_tensor` returned.

    Raises:
        PickleFault: the pickle is malformed, too large, or refers to a name that is not allowed.
    """
    return _Plainer(read_tensor).plain(_Reader(data).run())
