"""Work done ahead in a thread, so that the device does not wait for the disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK_SECONDS = 0.1  # how often a waiting side looks whether the other still is there


class Ahead(Generic[T]):
    """An iterator whose next elements are made in a thread.

    Args:
        source: makes the elements; runs in the thread alone, its exceptions are raised here.
        depth: how many elements may lie ready.

    Attributes:
        waited: seconds that `next` has waited in all.
    """

    def __init__(self, source: Iterator[T], depth: int = 2):
        self.waited = 0.0
        self._ready: Queue[tuple[T | None, BaseException | None]] = Queue(depth)
        self._closed = Event()
        self._thread = Thread(target=self._work, args=(source,), name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        begun = time.perf_counter()
        element, error = self._take()
        self.waited += time.perf_counter() - begun
        if error is not None:
            self.close()
            raise error
        return element  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the thread; what it had made is dropped."""
        self._closed.set()
        self._thread.join()

    def _take(self) -> tuple[T | None, BaseException | None]:
        while not self._closed.is_set():
            try:
                return self._ready.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue
        return None, StopIteration()

    def _work(self, source: Iterator[T]) -> None:
        try:
            for element in source:
                if not self._put((element, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001  (raised again where the element is asked for)
            self._put((None, error))

    def _put(self, made: tuple[T | None, BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(made, timeout=_LOOK_SECONDS)
            except Full:
                continue
            return True
        return False
