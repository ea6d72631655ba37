"""Validate the header of a safetensors file before anything relies on it.

A file is an 8-byte length, that many bytes of JSON, and the data. MLX trusts the JSON: a tensor of
200 axes aborts the process, and it reads past the end of a truncated file. So every entry is
checked first: dtype, number of axes, size in bytes, and offset, which has to be the end of the
previous one.

Source: the format's description in the README of huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlx_vits.checkpoints.file_start import Unusable, damaged, describe_start
from mlx_vits.checkpoints.torch_names import MAX_AXES, MAX_NAME_CHARS
from mlx_vits.errors import CheckpointError
from mlx_vits.system.faults import unreadable

# A run's state at full size has 0.3 MB; the rest is room for metadata.
_MAX_HEADER_BYTES = 16 << 20
_MAX_TENSORS = 20_000  # a run's state has 2,700
_MAX_AXIS = (1 << 31) - 1  # MLX counts along an axis in 32 bits
_MAX_ELEMENTS = 1 << 40
_HEAD_BYTES = 512
_METADATA = "__metadata__"
# Dtypes that MLX preserves: it reads 8-bit floats as integers, and has no 64-bit floats.
_ITEM_BYTES = {
    "BOOL": 1,
    "I8": 1,
    "U8": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
}


class _Entry(NamedTuple):
    """A tensor: its name, and its byte range after the header."""

    name: str
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        names: of the tensors, in the file's order.
        metadata: text by key.
    """

    names: list[str]
    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """Read and check a header without reading the data.

    Raises:
        CheckpointError: the file is missing, cut short, damaged, or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; check the path")
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD_BYTES)
            count = _header_bytes(head, file_bytes)
            file.seek(8)
            text = file.read(count)
        return _parse(text, file_bytes - 8 - count)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error
    except Unusable as error:
        raise CheckpointError(f"{path}: {error}") from error


def _header_bytes(head: bytes, file_bytes: int) -> int:
    """Return the length of the JSON, if the file starts like safetensors."""
    count = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if head[8:9] != b"{":
        # More likely a misnamed file of another kind than damage in these nine bytes.
        raise Unusable(
            describe_start(head)
            or "is damaged or not a safetensors file; copy or download it again"
        )
    if count > file_bytes - 8:
        raise Unusable(damaged("it ends within its header"))
    if count > _MAX_HEADER_BYTES:
        raise Unusable(
            f"has a header of {count >> 20} MB, which no model needs; take the file from a source "
            "you trust"
        )
    return int(count)


def _parse(text: bytes, data_bytes: int) -> Header:
    try:
        table = json.loads(text, object_pairs_hook=_table)
    except (ValueError, RecursionError) as error:
        raise Unusable(damaged("its header is not valid JSON")) from error
    metadata = table.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Unusable(damaged("its metadata is not a table of texts"))
    if len(table) > _MAX_TENSORS:
        raise Unusable(damaged(f"it lists {len(table)} tensors"))
    entries = [_entry(name, value) for name, value in table.items()]
    end = 0
    for entry in sorted(entries, key=lambda entry: entry[1:]):
        if entry.begin != end:
            raise Unusable(damaged("its tensors overlap, or leave a gap"))
        end = entry.end
    if end != data_bytes:
        raise Unusable(damaged(f"it holds {data_bytes} bytes of numbers in place of {end}"))
    return Header(list(table), metadata)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _entry(name: str, value: Any) -> _Entry:
    if len(name) > MAX_NAME_CHARS:
        raise Unusable(damaged(f"the name of a tensor has {len(name)} characters"))
    values = value if isinstance(value, dict) else {}
    item_bytes = _ITEM_BYTES.get(str(values.get("dtype")))
    shape: Any = values.get("shape")
    offsets: Any = values.get("data_offsets")
    if item_bytes is None:
        raise Unusable(
            f"holds {name} in the precision {values.get('dtype')}, which mlx_vits cannot read; "
            "save it as F16, BF16 or F32"
        )
    if not _is_shape(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise Unusable(damaged(f"the shape of {name} is impossible"))
    if math.prod(shape) * item_bytes != offsets[1] - offsets[0]:
        raise Unusable(damaged(f"the shape of {name} does not fit its bytes"))
    return _Entry(name, offsets[0], offsets[1])


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _is_shape(value: Any) -> bool:
    return (
        _is_counts(value)
        and len(value) <= MAX_AXES
        and all(n <= _MAX_AXIS for n in value)
        # Zeros count as 1: strides are computed from the other axes all the same.
        and math.prod(max(n, 1) for n in value) <= _MAX_ELEMENTS
    )
