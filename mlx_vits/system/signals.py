"""Ctrl-C, SIGTERM and SIGHUP: all three ask a command to end in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mlx_vits.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have signals that ask to end call a function.

    Those that are ignored, as SIGHUP is under nohup, stay ignored. Outside the main thread, which
    alone can handle signals, nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """The handler that ends what is going on as Ctrl-C does, so that it can tidy up."""
    raise Interrupted(number=number)
