"""The names that a PyTorch file may refer to, and what replaces them.

A pickle names classes and functions and has them called. These are all the names that a model file
needs, with what the reader substitutes for them; none is ever imported.

| name in the file | replaced by |
| --- | --- |
| `torch._utils._rebuild_tensor_v2`, `_rebuild_parameter` | a `TensorRef` |
| `torch.HalfStorage` and the like, in a persistent id | a `StorageRef` |
| `collections.OrderedDict` | a dict; attributes such as `_metadata` are dropped |
| `utils.HParams`, upstream's class for its configuration | a dict of its attributes |
| `pathlib.PosixPath` and `WindowsPath`, in files of a training's state | text |

Source: PyTorch's `torch/serialization.py` and `torch/_utils.py`; GPT-SoVITS `utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

MAX_AXES = 16
MAX_NAME_CHARS = 512  # of a tensor; the longest of any model has 70
_MAX_ELEMENTS = 1 << 40
_MAX_PATH_CHARS = 4096

STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
# numpy has no bfloat16: such a storage is read as bit patterns and widened.
BFLOAT16_STORAGE = "torch.BFloat16Storage"
STORAGES = frozenset([*STORAGE_DTYPES, BFLOAT16_STORAGE])


class PickleFault(ValueError):
    """The pickle cannot be read; the message gives reason and cure, without the file's name."""


@dataclass(frozen=True)
class StorageRef:
    """A storage: a flat block of numbers in the archive.

    Attributes:
        kind: PyTorch's class, a key of `STORAGE_DTYPES` or `BFLOAT16_STORAGE`.
        key: name of the block below `data/`.
        numel: number of elements.
    """

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage; offset and strides in elements, checked to be inside."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are in C order without gaps; true for an empty tensor."""
        if 0 in self.shape:
            return True
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


@dataclass(frozen=True)
class GlobalName:
    """A name that the file refers to, never resolved."""

    name: str


class Attributes:
    """An instance of upstream's `utils.HParams`: the dict of its attributes, once set."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None


def printable(text: str, longest: int = 200) -> str:
    """Make a text from a file safe to quote in a message."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])


def damaged(what: str) -> PickleFault:
    """Return the error for a file that is damaged rather than malicious."""
    return PickleFault(
        f"is damaged, or was not written by PyTorch: {what}; copy or download it again"
    )


def refuse_name(name: str) -> NoReturn:
    """Raise the error for a name that is not allowed."""
    raise PickleFault(
        f"asks for {printable(name)}, which no GPT-SoVITS model needs, and was refused without "
        "running any of it; take the file from a source you trust"
    )


def is_count(value: Any) -> bool:
    """Whether a value is an int (not a bool) from 0 to the largest plausible size."""
    return type(value) is int and 0 <= value <= _MAX_ELEMENTS


def _is_counts(value: Any) -> bool:
    return type(value) is tuple and len(value) <= MAX_AXES and all(map(is_count, value))


def _build_tensor(arguments: tuple[Any, ...]) -> TensorRef:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])`."""
    if len(arguments) not in (6, 7) or type(arguments[0]) is not StorageRef:
        raise damaged("a tensor is described wrongly")
    storage, offset, shape, strides = arguments[:4]
    if not (is_count(offset) and _is_counts(shape) and _is_counts(strides)):
        raise damaged("a tensor has an impossible shape")
    if len(shape) != len(strides) or math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        raise damaged("a tensor has an impossible shape")
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # A view with more elements than its storage repeats them: `torch.save` can write one, but only
    # a malicious file would.
    if offset > storage.numel or (count and (last >= storage.numel or count > storage.numel)):
        raise damaged("a tensor reaches outside its storage")
    return TensorRef(storage, offset, shape, strides)


def _build_parameter(arguments: tuple[Any, ...]) -> TensorRef:
    """`_rebuild_parameter(tensor, requires_grad, hooks)`."""
    if len(arguments) != 3 or type(arguments[0]) is not TensorRef:
        raise damaged("a parameter is described wrongly")
    return arguments[0]


def _build_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """`OrderedDict()`; its items follow in separate instructions."""
    if arguments:
        raise damaged("a dictionary is described wrongly")
    return {}


def _build_path(arguments: tuple[Any, ...]) -> str:
    """`PosixPath(*parts)`: text, which names nothing until somebody opens it."""
    if not all(type(part) is str for part in arguments):
        raise damaged("a path is described wrongly")
    if sum(len(part) + 1 for part in arguments) > _MAX_PATH_CHARS:
        raise damaged("a path is too long")  # paths of paths could grow without end
    return "/".join(arguments).replace("//", "/")


Builder = Callable[[tuple[Any, ...]], Any]
BUILDERS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor_v2": _build_tensor,
    "torch._utils._rebuild_parameter": _build_parameter,
    "collections.OrderedDict": _build_dict,
    # Python 3.13 names its own classes by another module.
    **{
        f"{module}.{kind}": _build_path
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath")
    },
}
HPARAMS = "utils.HParams"
NAMES = frozenset([*BUILDERS, *STORAGES, HPARAMS])
