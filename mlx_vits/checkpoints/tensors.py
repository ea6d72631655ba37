"""Read and write safetensors files: tensors and text metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.safetensors_header import read_header
from mlx_vits.checkpoints.torch_names import printable
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.system.faults import unreadable
from mlx_vits.system.files import atomic_write

_reading_process: int | None = None  # process id that owns MLX's reader threads


class TensorFile(NamedTuple):
    """The contents of a safetensors file."""

    tensors: dict[str, mx.array]
    metadata: dict[str, str]


def read_tensors(path: str | Path) -> TensorFile:
    """Read a safetensors file after checking its header.

    Raises:
        CheckpointError: the file is missing, truncated, or not safetensors.
    """
    path = Path(path)
    header = read_header(path)
    try:
        _check_not_forked(path)
        tensors: Any = mx.load(str(path), format="safetensors")
        mx.eval(tensors)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error
    except (RuntimeError, ValueError) as error:
        reason = printable(str(error))
        raise CheckpointError(
            f"{path}: is damaged or not a safetensors file ({reason}); copy or download it again"
        ) from error
    return TensorFile(tensors, header.metadata)


def _check_not_forked(path: Path) -> None:
    """Refuse to read in a forked process, where MLX would wait forever.

    MLX starts its reader threads at the first file, and they do not survive a fork.
    """
    global _reading_process
    if _reading_process not in (None, os.getpid()):
        raise UserError(
            f"{path}: cannot be read in this process, which was forked from one that had read such "
            "a file; load it before the fork, or start the process with multiprocessing's "
            "'spawn' method"
        )
    _reading_process = os.getpid()


def write_tensors(
    path: str | Path, tensors: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically and deterministically.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as file:
        mx.save_safetensors(file, dict(tensors), dict(metadata or {}))


def check_finite(tensors: Mapping[str, mx.array], source: str | Path) -> None:
    """Refuse tensors that hold NaN or infinity.

    A sum is finite only if every element is, and takes one pass; the exact test runs only if it is
    not.

    Args:
        tensors: by name; integers are accepted.
        source: the file, for messages.

    Raises:
        CheckpointError: a tensor is not finite.
    """
    sums = {
        name: mx.sum(array.astype(mx.float32))
        for name, array in tensors.items()
        if mx.issubdtype(array.dtype, mx.inexact)
    }
    mx.eval(sums)
    for name, found in sums.items():
        if not mx.isfinite(found).item() and not mx.all(mx.isfinite(tensors[name])).item():
            raise CheckpointError(
                f"{source}: {printable(name)} holds NaN or infinity, so nothing can be computed "
                "with it; copy or download the file again, or take an earlier one"
            )


def to_numpy(array: mx.array) -> np.ndarray:
    """Convert to numpy in the same precision; bfloat16, which numpy lacks, becomes float32."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
