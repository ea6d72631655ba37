"""Work that does not depend on each other, on two cores of a CPU at once.

MLX's CPU backend computes element by element on one core, and only its BLAS uses several; but each
stream has a thread of its own. What passes over all parameters of a net (the optimizer, weight
norm, norms of gradients) is bound by that one core, and falls into arrays that need nothing of each
other: half of them go to a second stream. Products stay on one, so that two threads never ask the
BLAS for all cores. Each number is computed as before. As memory is shared, two cores take 0.7 of
the time of one; of a full-size step on two cores it saves three percent.

On a GPU, and where there is one core, everything stays on the default stream.

Synthesis goes further (`synthesis/pieces.py`): there each core has a stream, whose products as well
stay on it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from threading import Lock

import mlx.core as mx

from mlx_vits._backend import BLAS

_MOST_LANES = 8
_LEAST = 100_000  # elements; below, handing work over takes as long as doing it


def _cores() -> int:
    """Which this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _second() -> mx.ThreadLocalStream | None:
    """The other stream, in every thread that computes another one; None with a single core."""
    return mx.new_thread_local_stream(mx.cpu) if _cores() > 1 else None


@cache
def lanes() -> list[Callable[[], AbstractContextManager]]:
    """A stream for each core of a CPU: functions, each to a context that computes on its own."""
    streams = [mx.new_thread_local_stream(mx.cpu) for _ in range(min(_cores(), _MOST_LANES))]
    return [partial(mx.stream, stream) for stream in streams]


@contextmanager
def one_core_a_product() -> Iterator[None]:
    """Has the BLAS keep to one core within a `with` block, so that each stream can have its own.

    It is what is computed within the block that counts, not what is described there. Blocks of
    several threads may overlap: the last one gives the cores back. Without effect on a BLAS that
    cannot be told, as Accelerate.
    """
    threads = _blas_threads()
    if threads is None:
        yield
        return
    threads.take()
    try:
        yield
    finally:
        threads.give_back()


class _Threads:
    """How many threads a BLAS uses.

    Args:
        read, write: the library's own functions.
    """

    def __init__(self, read: Callable[[], int], write: Callable[[int], None]):
        self.read, self._write = read, write
        self._lock, self._blocks, self._before = Lock(), 0, 1

    def take(self) -> None:
        """One thread, until it was given back as often."""
        with self._lock:
            if not self._blocks:
                self._before = self.read()
                self._write(1)
            self._blocks += 1

    def give_back(self) -> None:
        """As many as before."""
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._write(self._before)


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


def side_by_side(sizes: Sequence[int]) -> Iterator[AbstractContextManager]:
    """Where to compute each of several pieces: a context for each, in their order.

    Args:
        sizes: of the pieces, in elements; both streams get about as many.
    """
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    second = _second() if on_cpu and len(sizes) > 1 else None
    ours = theirs = 0
    for size in sizes:
        if second is not None and size >= _LEAST and theirs + size <= ours:
            theirs += size
            yield mx.stream(second)
        else:
            ours += size
            yield nullcontext()
