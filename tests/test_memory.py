"""What is known of a machine's memory, how much is kept, and what is said when it runs out."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import typer

from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.errors import UserError
from mlx_vits.finetune import sovits_stage
from mlx_vits.report.terminal import report_errors
from mlx_vits.system import memory
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig
from tests.support.goldens import ROOT
from tests.support.tiny import SEGMENT, Silent, make_base, make_voice

MAC = {"memory_size": 16 << 30, "max_recommended_working_set_size": 12 << 30}
CUDA = {"total_memory": 80 << 30, "free_memory": 70 << 30}
# As Metal's allocator, Metal's queue, CUDA's allocator and its runtime put it.
SHORTAGES = [
    "[malloc] Unable to allocate 123456 bytes.",
    "[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum allowed "
    "buffer size of 9 bytes.",
    "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBuffer"
    "CallbackErrorOutOfMemory)",
    "cudaMallocAsync(&data, size, stream) failed: out of memory",
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    monkeypatch.setattr(memory, "_gpu_info", lambda: request.param)


@pytest.fixture
def set_to(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limits that MLX is given."""
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    monkeypatch.delenv(memory.CACHE_VARIABLE, raising=False)
    return limits


@pytest.mark.parametrize("gpu", [MAC, CUDA], indirect=True)
def test_a_gpus_cache_leaves_most_of_its_memory(gpu: None, set_to: list[int]) -> None:
    limit = memory.limit_cache()
    assert set_to == [limit]
    assert 1 << 30 < set_to[0] < memory.total_memory() / 2


@pytest.mark.parametrize("gpu", [{}], indirect=True)
def test_on_a_cpu_mlx_keeps_its_own_limit(gpu: None, set_to: list[int]) -> None:
    assert memory.limit_cache() is None
    assert set_to == []


@pytest.mark.parametrize("gpu", [MAC, {}], indirect=True)
def test_the_cache_can_be_set(
    gpu: None, set_to: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for wish, limit in (("0.5", 500_000_000), ("0", 0)):
        monkeypatch.setenv(memory.CACHE_VARIABLE, wish)
        assert memory.limit_cache() == limit
    assert set_to == [500_000_000, 0]


@pytest.mark.parametrize("wish", ["much", "-1", "nan", "inf"])
@pytest.mark.parametrize("gpu", [MAC], indirect=True)
def test_a_wish_that_is_no_number_is_said_and_ignored(
    gpu: None, wish: str, set_to: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(memory.CACHE_VARIABLE, wish)
    with pytest.warns(UserWarning, match=f"={wish}: is no number of gigabytes; ignored"):
        limit = memory.limit_cache()
    monkeypatch.delenv(memory.CACHE_VARIABLE)
    assert limit == memory.limit_cache()


def test_it_is_set_when_the_package_is_imported() -> None:
    code = "import mlx_vits, mlx.core as mx; print(mx.set_cache_limit(0))"
    environment = os.environ | {memory.CACHE_VARIABLE: "0.125"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert done.stdout.strip() == "125000000"


def test_what_a_gpu_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "get_active_memory", lambda: 5 << 30)
    for info, total, free in ((MAC, 16, 7), (CUDA, 80, 70), ({"total_memory": 8 << 30}, 8, 3)):
        monkeypatch.setattr(memory, "_gpu_info", lambda info=info: info)
        assert (memory.total_memory(), memory.free_memory()) == (total << 30, free << 30)


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of 8 GB with 5 free, without control groups."""
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 5000000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_gpu_info", dict)
    monkeypatch.setattr(memory, "machine_memory", lambda: 8 << 30)
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def test_what_a_machine_without_a_gpu_has_left(linux: Path) -> None:
    assert (memory.total_memory(), memory.free_memory()) == (8 << 30, 5_120_000_000)
    (linux / "memory.max").write_text("max\n")
    assert (memory.total_memory(), memory.free_memory()) == (8 << 30, 5_120_000_000)


@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
)
def test_a_container_has_its_own_bound(linux: Path, limit: str, used: str) -> None:
    (linux / "memory").mkdir()
    (linux / limit).write_text("3000000000\n")
    (linux / used).write_text("1000000000\n")
    assert (memory.total_memory(), memory.free_memory()) == (3_000_000_000, 2_000_000_000)
    (linux / used).write_text("4000000000\n")
    assert memory.free_memory() == 0


def test_resident_memory_is_known() -> None:
    assert 10e6 < memory.resident_bytes() < 1e12


def test_what_says_that_memory_ran_out() -> None:
    assert all(memory.is_out_of_memory(RuntimeError(words)) for words in SHORTAGES)
    assert memory.is_out_of_memory(MemoryError())
    assert not memory.is_out_of_memory(RuntimeError("[matmul] shapes do not fit"))
    assert not memory.is_out_of_memory(ValueError(SHORTAGES[0]))


@pytest.mark.parametrize("error", [RuntimeError(SHORTAGES[0]), MemoryError()])
def test_a_command_that_runs_out_of_memory_says_so(error: Exception, capsys: Any) -> None:
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit):
        report_errors(command)()
    words = "memory ran out; close other programs, or give shorter recordings"
    assert capsys.readouterr().err == f"error: {words}\n"


def test_another_error_of_mlx_keeps_its_traceback() -> None:
    def command() -> None:
        raise RuntimeError("[matmul] shapes do not fit")

    with pytest.raises(RuntimeError, match="matmul"):
        report_errors(command)()


class Heard(Silent):
    """A screen that remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def options(tmp_path_factory: Any) -> finetune.FinetuneOptions:
    root = tmp_path_factory.mktemp("memory")
    make_base(root / "base")
    return finetune.FinetuneOptions(
        voice="clips",
        data=make_voice(root / "clips"),
        base=choose_base(str(root / "base")),
        output=root / "run",
        training=VITSTrainingConfig(steps=3, batch_size=4, segment_size=SEGMENT),
    )


@pytest.mark.parametrize("words", SHORTAGES)
def test_a_run_that_runs_out_of_memory_names_the_batch_that_fits(
    words: str, options: finetune.FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = VITSTrainer._begin

    def failing(self: VITSTrainer, batch: Any, place: Any) -> Any:
        if place.step == 1:
            raise RuntimeError(words)
        return begin(self, batch, place)

    monkeypatch.setattr(VITSTrainer, "_begin", failing)
    with pytest.raises(UserError) as caught:
        finetune.start(options, Silent())
    said = str(caught.value)
    assert said.startswith("Memory ran out after step 1: a batch of 4 clips of up to 3 s needs")
    assert "--batch-size 3 fits" in said or "--batch-size 2 fits" in said
    assert "The weights of step 0 are kept in" in said


def test_a_fault_of_ours_keeps_its_traceback(
    options: finetune.FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: VITSTrainer, batch: Any, place: Any) -> Any:
        raise RuntimeError("[matmul] shapes do not fit")

    monkeypatch.setattr(VITSTrainer, "_begin", failing)
    with pytest.raises(RuntimeError, match="matmul"):
        finetune.start(options, Silent())


@pytest.mark.parametrize(
    ("usable", "cure"),
    [
        (1_000_000, "not even one fits; leave the longest clips out, or close other programs."),
        (10_000_000_000, None),
        (0, None),  # nobody knows
    ],
)
def test_a_shortage_is_said_before_the_first_step(
    usable: int, cure: str | None, options: finetune.FinetuneOptions, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sovits_stage, "usable_memory", lambda: usable)
    screen = Heard()
    training = replace(options.training, steps=1, batch_size=64)
    finetune.start(replace(options, training=training), screen)
    found = [words for words in screen.warnings if words.startswith("Memory may run out: ")]
    assert len(found) == (cure is not None)
    if cure is not None:
        assert "a batch of 64 clips of up to 3 s needs about" in found[0]
        assert found[0].endswith(cure)


def test_a_gpu_that_is_not_computed_on_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`MLX_VITS_DEVICE=cpu` leaves a GPU's memory out of every bound."""
    monkeypatch.setattr(mx, "is_available", lambda device: True)
    monkeypatch.setattr(mx, "device_info", lambda device: {"memory_size": 1 << 50})
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert memory.total_memory() < 1 << 50
