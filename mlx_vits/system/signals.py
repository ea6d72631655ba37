"""Ctrl-C, SIGTERM and SIGHUP, all of which ask a command to end cleanly."""

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
    """Call `handler` on the signals that ask a process to end.

    Ignored signals, such as SIGHUP under nohup, stay ignored. Outside the main thread, the only one
    that can handle signals, this does nothing.
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
    """Signal handler that raises, as Ctrl-C does, so that cleanup runs."""
    raise Interrupted(number=number)
