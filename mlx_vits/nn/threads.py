"""Which thread computes: MLX on a CPU in programs with threads, forks and an end.

MLX gives each Python thread that computes streams of its own, each with an OS thread that outlives
it, and keeps Python objects for it (the state of `mx.random`, what `mx.compile` recorded). It frees
those when the OS thread ends, which `Thread.join` does not wait for. If the program ends meanwhile,
MLX waits for an interpreter that is gone, and the process aborts. A program that answers each
request in a new thread meets both.

So whatever `on_lasting_thread` decorates is computed by the main thread or by one owner thread,
which work for all the others and end in good order.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial, wraps
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import mlx.core as mx

Function = TypeVar("Function", bound=Callable[..., Any])
_Task = tuple[Callable[[], Any], Future]

_turn = threading.RLock()  # held while something is computed


def on_lasting_thread(compute: Function) -> Function:
    """Decorate a function that computes with MLX so that any thread may call it.

    Calls take turns; one may be nested in another. The main thread computes its own calls, so that
    Ctrl-C reaches them. Arrays among the arguments are evaluated, as only the thread that described
    an array can do so; the function has to evaluate what it returns.
    """

    @wraps(compute)
    def computed(*args: Any, **kwargs: Any) -> Any:
        thread = threading.current_thread()
        if thread is threading.main_thread() or isinstance(thread, _Owner):
            with _turn:
                return compute(*args, **kwargs)
        mx.eval(args, kwargs)
        return _hand_over(partial(copy_context().run, compute, *args, **kwargs))

    return cast(Function, computed)


class _Owner(threading.Thread):
    """The thread that computes for all but the main one."""

    def __init__(self) -> None:
        super().__init__(name="mlx_vits", daemon=True)
        self.tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self.is_closed = False

    def run(self) -> None:
        forget_at_thread_end()
        while self._has_done(self.tasks.get()):
            pass

    def _has_done(self, task: _Task | None) -> bool:
        """Compute one task, of which nothing is kept; False where there shall be no other."""
        with _turn:
            if task is None or self.is_closed:
                return False
            compute, future = task
            try:
                future.set_result(compute())
            except BaseException as error:  # noqa: BLE001  (raised again in the calling thread)
                future.set_exception(error)
            return True


_owner: _Owner | None = None


def _hand_over(compute: Callable[[], Any]) -> Any:
    """Have the owner compute; return or raise what it does."""
    global _owner
    future: Future = Future()
    with _turn:
        if _owner is None:
            _owner = _Owner()
            _owner.start()
        _owner.tasks.put((compute, future))
    return future.result()


@atexit.register
def _close() -> None:
    """Let a computation for a daemon thread end, and none begin; the callers wait for ever.

    A thread that comes back from MLX once the interpreter is gone would abort the process.
    """
    with _turn:
        if _owner is not None:
            _owner.is_closed = True
            _owner.tasks.put(None)
    if _owner is not None:
        _owner.join()
    _turn.acquire()


def _after_fork_in_child() -> None:
    """Replace what has threads that exist in the parent alone, and would be waited for."""
    global _owner
    _owner = None
    mx.set_default_stream(mx.new_stream(mx.cpu))
    _turn.release()


if hasattr(os, "register_at_fork"):
    # A fork takes its turn as well: the child inherits nothing that is half computed.
    os.register_at_fork(
        before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_after_fork_in_child
    )


class _Cleaner:
    """Frees what MLX holds for the thread that made it; nothing of the main thread."""

    def __init__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self._thread = None if is_main else threading.get_ident()

    def __del__(
        self,
        get_ident: Callable[[], int] = threading.get_ident,
        clear: Callable[[], None] = mx.clear_streams,
    ) -> None:
        # After a fork, and at the end of the process, another thread deletes it.
        if get_ident() == self._thread:
            clear()


class _OfThread(threading.local):
    """A cleaner for each thread that asks for one."""

    def __init__(self) -> None:
        self.cleaner = _Cleaner()


_of_thread = _OfThread()


def forget_at_thread_end() -> None:
    """Have MLX free what it holds for the calling thread just before that ends."""
    _ = _of_thread.cleaner
