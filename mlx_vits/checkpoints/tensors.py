"""safetensors files: tensors and text metadata, with errors a user can act on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save as save_bytes

from mlx_vits.errors import CheckpointError
from mlx_vits.files import atomic_write


class TensorFile(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, mx.array]
    metadata: dict[str, str]


def read_tensors(path: str | Path) -> TensorFile:
    """Reads a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated, or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; check the path")
    _check_header(path)
    try:
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        mx.eval(loaded[0])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); copy or download it again") from error
    return TensorFile(*loaded)


def _check_header(path: Path) -> None:
    """Refuses a file whose header does not fit its length: MLX reads lazily, past the end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 100_000_000):
            raise CheckpointError(f"{path}: is not a safetensors file, or only part of one")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for k, entry in header.items() if k != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path}: is damaged; copy or download it again") from error
    if whole != size:
        raise CheckpointError(
            f"{path}: is {size} bytes long instead of {whole}; copy or download it again"
        )


def write_tensors(
    path: str | Path, tensors: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, whole or not at all; the same input gives the same bytes.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = {name: np.array(array) for name, array in tensors.items()}
    try:
        data = save_bytes(arrays, dict(metadata) if metadata else None)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error
    with atomic_write(path) as file:
        file.write(data)
