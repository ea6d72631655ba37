"""What a stage hands to the next: arrays of many clips in one file, written whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write

_STARTED = time.monotonic()


def say(text: str) -> None:
    """One line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:.0f} s] {text}", flush=True)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes named arrays as `.npz`."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def write_clips(path: Path, **fields: Sequence[np.ndarray]) -> None:
    """Writes one array a clip for each field; all fields have the same lengths along axis 0."""
    ends = np.cumsum([len(array) for array in next(iter(fields.values()))])
    write_arrays(path, ends=ends, **{name: np.concatenate(list(f)) for name, f in fields.items()})


def read_arrays(path: Path, stage: str, only: str | None = None) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote.

    Args:
        stage: that writes the file.
        only: name of the one array that is needed.

    Raises:
        UserError: the file is missing or damaged; it names the stage that makes it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ([only] if only else file.files)}
    except FileNotFoundError as error:
        raise UserError(f"{path}: is not there yet; run the stage `{stage}` first") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is damaged; delete it and run `{stage}` again") from error


def read_lengths(path: Path, stage: str) -> list[int]:
    """How long each clip's array is in a file of `write_clips`.

    Raises:
        UserError: as `read_arrays`.
    """
    return np.diff(read_arrays(path, stage, only="ends")["ends"], prepend=0).tolist()


def read_clips(path: Path, stage: str) -> dict[str, list[np.ndarray]]:
    """Reads what `write_clips` wrote: for each field an array a clip.

    Raises:
        UserError: as `read_arrays`.
    """
    arrays = read_arrays(path, stage)
    ends = arrays.pop("ends")
    return {name: np.split(array, ends[:-1]) for name, array in arrays.items()}
