"""A stream for each core of a CPU, whose products stay on it.

MLX's CPU backend computes element by element on one core, and only its BLAS uses several; but each
stream has a thread of its own. `pieces.py` decodes on all of them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from mlx_vits._backend import BLAS

_MOST_LANES = 8


def _cores() -> int:
    """Which this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def lanes() -> list[mx.ThreadLocalStream]:
    """A stream for each core of a CPU, in every thread that computes other ones."""
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(min(_cores(), _MOST_LANES))]


def _forget_streams() -> None:
    """Have a forked process make its own: the threads of these exist in its parent alone."""
    lanes.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_streams)


@contextmanager
def one_core_a_product() -> Iterator[None]:
    """Has the BLAS keep to one core within a `with` block, so that each stream can have its own.

    It is what is computed within the block that counts, not what is described there. Blocks must
    not overlap, so take turns (`threads.py`). Without effect on a BLAS that cannot be told, as
    Accelerate.
    """
    threads = _blas_threads()
    if threads is None:
        yield
        return
    before = threads.read()
    threads.write(1)
    try:
        yield
    finally:
        threads.write(before)


class _Threads(NamedTuple):
    """A BLAS's own functions for how many threads it uses."""

    read: Callable[[], int]
    write: Callable[[int], None]


# Of MKL and OpenBLAS. The package threadpoolctl tells MKL for the calling thread alone, which is
# not one of those that compute.
_THREADS = (
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
)


@cache
def _blas_threads() -> _Threads | None:
    """Those of MLX's BLAS; None where it cannot be told."""
    if not BLAS.path:
        return None
    library = ctypes.CDLL(BLAS.path)
    for read, write in _THREADS:
        if hasattr(library, read) and hasattr(library, write):
            return _Threads(library[read], library[write])
    return None
