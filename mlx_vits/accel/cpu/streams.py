"""One stream per CPU core, each with single-threaded products.

MLX's CPU backend runs element-wise operations on one core, only its BLAS uses several; but each
stream has its own thread. `pieces.py` decodes on all of them.
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

_MAX_STREAMS = 8


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def core_streams() -> list[mx.ThreadLocalStream]:
    """Return a stream for each CPU core; every calling thread gets its own."""
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(min(_cores(), _MAX_STREAMS))]


def _forget_streams() -> None:
    """Drop the streams in a forked process, where their threads do not exist."""
    core_streams.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_streams)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit the BLAS to one thread within a `with` block, so that each stream has its own core.

    It affects what is evaluated within the block, not what is built there. Blocks must not overlap,
    so take turns (`threads.py`). It has no effect on a BLAS without such a setting, like
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
    """A BLAS's own getter and setter for its number of threads."""

    read: Callable[[], int]
    write: Callable[[int], None]


# Of MKL and OpenBLAS. threadpoolctl sets MKL's for the calling thread only, which is not one that
# computes.
_THREADS = (
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
)


@cache
def _blas_threads() -> _Threads | None:
    """Return the functions of MLX's BLAS, None if it has none."""
    if not BLAS.path:
        return None
    library = ctypes.CDLL(BLAS.path)
    for read, write in _THREADS:
        if hasattr(library, read) and hasattr(library, write):
            return _Threads(library[read], library[write])
    return None
