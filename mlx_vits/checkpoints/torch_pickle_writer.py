"""Write the pickle inside a PyTorch file, without PyTorch.

Protocol 2, with the instructions that `torch.load(weights_only=True)` accepts. Python's pickler
cannot be used, since it imports every name that it writes.

Source: Python's `pickletools`; PyTorch's `torch/_utils.py`, `_rebuild_tensor_v2`.
"""

from __future__ import annotations

import pickletools
import struct
from typing import Any

import numpy as np

from mlx_vits.checkpoints.torch_names import STORAGE_DTYPES

_CODES = {op.name: op.code.encode("latin1") for op in pickletools.opcodes}
_STORAGE_OF_DTYPE = {dtype: name for name, dtype in STORAGE_DTYPES.items()}


class _Writer:
    """Appends instructions to a pickle and collects the arrays it refers to."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self._parts: list[bytes] = []
        self._memo: dict[bytes, int] = {}

    def pickle(self, value: Any) -> bytes:
        """Return the complete pickle of one object."""
        self._parts = [_CODES["PROTO"] + b"\x02"]
        self._value(value)
        self._emit("STOP")
        return b"".join(self._parts)

    def _emit(self, name: str, argument: bytes = b"") -> None:
        self._parts.append(_CODES[name] + argument)

    def _once(self, name: str, argument: bytes) -> None:
        """Write a text or a name the first time, and refer back to it after that."""
        whole = _CODES[name] + argument
        if whole in self._memo:
            self._emit("LONG_BINGET", struct.pack("<I", self._memo[whole]))
            return
        self._memo[whole] = len(self._memo)
        self._parts.append(whole)
        self._emit("LONG_BINPUT", struct.pack("<I", self._memo[whole]))

    def _global(self, module: str, name: str) -> None:
        self._once("GLOBAL", f"{module}\n{name}\n".encode())

    def _value(self, value: Any) -> None:
        if value is None:
            self._emit("NONE")
        elif isinstance(value, bool):
            self._emit("NEWTRUE" if value else "NEWFALSE")
        elif isinstance(value, int):
            self._int(int(value))
        elif isinstance(value, float):
            self._emit("BINFLOAT", struct.pack(">d", value))
        elif isinstance(value, str):
            text = value.encode("utf-8", "surrogatepass")
            self._once("BINUNICODE", struct.pack("<I", len(text)) + text)
        elif isinstance(value, dict):
            self._dict(value)
        elif isinstance(value, list):
            self._emit("EMPTY_LIST")
            self._items("APPENDS", value)
        elif isinstance(value, tuple):
            self._items("TUPLE", value)
        elif isinstance(value, np.ndarray):
            self._tensor(value)
        else:
            raise TypeError(f"a PyTorch file cannot hold a {type(value).__name__}")

    def _items(self, closing: str, values: list[Any] | tuple[Any, ...]) -> None:
        self._emit("MARK")
        for value in values:
            self._value(value)
        self._emit(closing)

    def _dict(self, values: dict[Any, Any]) -> None:
        self._emit("EMPTY_DICT")
        for key in values:
            if not isinstance(key, str) and (isinstance(key, bool) or not isinstance(key, int)):
                raise TypeError(f"a PyTorch file cannot hold a {type(key).__name__} as a key")
        self._items("SETITEMS", [part for pair in values.items() for part in pair])

    def _int(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self._emit("BININT", struct.pack("<i", value))
            return
        size = value.bit_length() // 8 + 1
        self._emit("LONG1", struct.pack("<B", size) + value.to_bytes(size, "little", signed=True))

    def _tensor(self, array: np.ndarray) -> None:
        kind = _STORAGE_OF_DTYPE.get(array.dtype.newbyteorder("<"))
        if kind is None:
            raise TypeError(f"a PyTorch file cannot hold an array of {array.dtype}")
        strides, step = [], 1
        for size in reversed(array.shape):
            strides.append(step)
            step *= max(size, 1)
        self._global("torch._utils", "_rebuild_tensor_v2")
        self._emit("MARK")
        self._emit("MARK")
        self._value("storage")
        self._global(*kind.rsplit(".", 1))
        self._value(str(len(self.arrays)))
        self._value("cpu")
        self._value(array.size)
        self._emit("TUPLE")
        self._emit("BINPERSID")
        self._value(0)
        self._value(array.shape)
        self._value(tuple(reversed(strides)))
        self._value(False)
        self._global("collections", "OrderedDict")
        self._emit("EMPTY_TUPLE")
        self._emit("REDUCE")
        self._emit("TUPLE")
        self._emit("REDUCE")
        self.arrays.append(array)


def build_pickle(value: Any) -> tuple[bytes, list[np.ndarray]]:
    """Pickle an object in PyTorch's format.

    Args:
        value: a tree of dict (keys str or int), list, tuple, str, int, float, bool, None and
            arrays of float16/32/64, int8/16/32/64, uint8 or bool, of any memory order.

    Returns:
        The bytes of `data.pkl`, and the arrays to store below `data/` in this order, each in C
        order and little-endian.

    Raises:
        TypeError: the tree holds something else, a bug of the caller.
    """
    writer = _Writer()
    return writer.pickle(value), writer.arrays
