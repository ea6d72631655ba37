"""A voice in threads and in forked processes: the same sound, nothing left behind, a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn.threads import on_lasting_thread
from mlx_vits.synthesis.voice import Voice
from tests.support.tiny import tiny_config

ROOT = Path(__file__).parents[1]
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux alone")
SECONDS = 60  # for a program; one takes about one


pytestmark = pytest.mark.usefixtures("on_cpu")


def make_voice() -> Voice:
    mx.random.seed(1)
    model = SynthesizerTrn(tiny_config("v2"))
    mx.eval(model.parameters())  # for any thread
    return Voice(model)


def say(voice: Voice, codes: int = 12) -> np.ndarray:
    refer = np.linspace(0, 1, 1025 * 40, dtype=np.float32).reshape(1, 1025, 40)
    return voice.decode(np.arange(codes)[None, None], np.arange(7)[None], refer)


def start(lines: str) -> subprocess.Popen[str]:
    """A program of its own; `make_voice` and `say` are at hand."""
    program = f"import mlx_vits\nfrom tests.test_threads import *\n{lines}"
    environment = {**os.environ, "MLX_VITS_DEVICE": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(program: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    try:
        printed, _ = program.communicate(timeout=SECONDS)
    finally:
        program.kill()
    assert program.returncode == 0, printed
    return printed


# Several processes, for it is a race; a fork spares each the imports. Half of them build a model.
JOINED = """
children = []
for _ in range(10):
    children.append(os.fork())
    if not children[-1]:
        break
else:
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
decode = lambda: say(make_voice())
thread = threading.Thread(target=decode if len(children) % 2 else make_voice)
thread.start()
thread.join()
"""
DAEMON = """
def speak():
    while True:
        say(voice)
voice = make_voice()
say(voice)
threading.Thread(target=speak, daemon=True).start()
time.sleep(0.2)
"""


@ON_LINUX
def test_a_program_ends_well_that_used_a_voice_in_another_thread() -> None:
    assert not end(start(JOINED))


def test_a_program_ends_well_while_a_daemon_thread_decodes() -> None:
    assert not end(start(DAEMON))


def count_os_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@ON_LINUX
def test_threads_that_ended_leave_nothing_behind() -> None:
    voice = make_voice()

    def decode_in_threads(count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(target=say, args=(voice,))
            thread.start()
            thread.join()

    decode_in_threads(2)
    before = count_os_threads()
    decode_in_threads(10)
    deadline = time.monotonic() + 5  # `join` returns before the system has cleared away
    while count_os_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count_os_threads() <= before


@pytest.mark.parametrize("is_folded", [True, False])
def test_threads_that_decode_at_once_give_what_one_gives(is_folded: bool) -> None:
    lengths = list(range(5, 17))
    first = make_voice()
    wished = [say(first, codes) for codes in lengths]
    voice = first if is_folded else make_voice()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda codes: say(voice, codes), lengths))
    assert all(map(np.array_equal, found, wished))


FORKED = """
voice = make_voice()
wished = say(voice)
path = voice.save(sys.argv[1])
def child(use):
    process = os.fork()
    if not process:
        signal.alarm(20)
        print(use(), flush=True)
        os._exit(0)
    return os.waitpid(process, 0)[1]
def loaded():
    try:
        return np.array_equal(say(mlx_vits.load(path)), wished)
    except mlx_vits.UserError as error:
        return error
assert child(loaded) == 0
fresh = mlx_vits.load(path)
assert child(lambda: np.array_equal(say(voice), wished)) == 0
assert child(lambda: np.array_equal(say(fresh), wished)) == 0
assert child(loaded) == 0
assert np.array_equal(say(voice), wished)
"""


@ON_LINUX
def test_a_forked_process_decodes(tmp_path: Path) -> None:
    path = tmp_path / "voice.safetensors"
    printed = end(start(FORKED.replace("sys.argv[1]", repr(str(path))))).splitlines()
    assert printed[:3] == ["True"] * 3
    # MLX's threads that read files stay behind, and cannot be replaced.
    assert len(printed) == 4
    assert str(path) in printed[3]
    assert "load it before the fork" in printed[3]


def test_an_error_is_raised_where_it_was_called_and_stops_no_other() -> None:
    voice = make_voice()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="speed is 0"):
            pool.submit(voice.decode, [[[1]]], [[1]], [], speed=0).result(SECONDS)
        assert np.array_equal(pool.submit(say, voice).result(SECONDS), say(voice))


def test_arrays_that_are_not_computed_yet_may_be_given() -> None:
    voice = make_voice()

    def speak() -> np.ndarray:
        refer = mx.ones((1, 1025, 40)) * 0.5
        return voice.decode(np.arange(12)[None, None], np.arange(7)[None], [refer])

    with ThreadPoolExecutor(1) as pool:
        assert np.array_equal(pool.submit(speak).result(SECONDS), speak())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_whoever_waits_for_another_thread_can_be_interrupted() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    is_begun, is_over = threading.Event(), threading.Event()

    @on_lasting_thread
    def compute() -> None:
        is_begun.set()
        is_over.wait(SECONDS)

    before = signal.signal(signal.SIGALRM, interrupt)
    thread = threading.Thread(target=compute)
    thread.start()
    try:
        is_begun.wait(SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            say(make_voice())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        is_over.set()
        thread.join()
