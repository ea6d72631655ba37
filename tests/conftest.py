"""What every test shares: an environment that is no machine's own, and what a machine may lack."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator

import pytest

# A user's settings must change no test, nor the programs that tests run: how wide and colourful the
# terminal is, where weights lie, what MLX and the Hub are told.
_KEPT = ("MLX_VITS_BLAS", "MLX_VITS_DEVICE", "MLX_VITS_ACCEL", "MLX_ENABLE_TF32", "HF_HOME")
_TERMINAL = ("LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "TERM", "COLORTERM")
_DROPPED = (*_TERMINAL, "TERMINAL_WIDTH", "GITHUB_ACTIONS", "PYTHONUTF8", "PYTHONIOENCODING")
for _name in set(os.environ) - set(_KEPT):
    if _name.startswith(("MLX_", "HF_", "TTY_")) or _name in _DROPPED:
        del os.environ[_name]
os.environ["COLUMNS"] = "80"
# Started in the background, as by nohup or a job runner, a program ignores these, and so do those
# that it starts.
with contextlib.suppress(ValueError):  # not the main thread
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for _number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(_number, signal.SIG_DFL)

import mlx_vits  # noqa: F401  (chooses the BLAS before a test imports mlx)

import mlx.core as mx  # isort: skip

from mlx_vits.accel.compilation import stop_fusing

# On a Linux CPU g++ takes half a second for each fused kernel, and a compiled step has over a
# hundred: there `mx.compile` records and plays back, as on CUDA, but for the slow tests and those
# with the fixture `fusing`.
_STOPS_FUSING = sys.platform.startswith("linux") and not mx.cuda.is_available()

# The longest first: two processes that share the files then end together.
_LONGEST = ("test_plan", "test_trainer", "test_cuda_step", "test_handover", "test_train_command")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("machine"):
        for program in mark.args:
            # Without g++ MLX compiles nothing on a Linux CPU; elsewhere it needs none.
            if not shutil.which(program) and (program != "g++" or _STOPS_FUSING):
                pytest.skip(f"no {program}")
    if _STOPS_FUSING:
        (mx.enable_compile if item.get_closest_marker("slow") else stop_fusing.__wrapped__)()


@pytest.fixture
def fusing() -> None:
    """Has `mx.compile` fuse kernels, as it does by default."""
    mx.enable_compile()


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """Has MLX compute on the CPU, whatever else there is."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)
