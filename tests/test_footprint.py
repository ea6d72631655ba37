"""What a step is reckoned to take in memory, against what it takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_vits.checkpoints.base import find_base
from mlx_vits.config import Config
from mlx_vits.training.footprint import (
    Clips,
    batch_that_fits,
    describe_shortage,
    estimate_peak,
    is_short,
)
from tests.support.goldens import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from fit_memory import measure_peak

DEMO = find_base("demo").read_generator().config
FULL = Config()


on_a_cpu = pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="the factors are those of a CPU"
)


def assert_covers(config: Config, clips: Clips, recomputes: bool = False) -> None:
    """The estimate is not below what a step takes, but for its scatter, nor far above."""
    measured = measure_peak(config, clips, recomputes=recomputes)
    assert 0.98 <= estimate_peak(config, clips, recomputes=recomputes) / measured <= 1.3


@on_a_cpu
@pytest.mark.parametrize(
    ("clips", "recomputes"),
    [(Clips(1, 64, 32), False), (Clips(1, 512, 96), False), (Clips(3, 128, 32), True)],
    ids=str,
)
def test_the_estimate_is_what_a_step_takes(clips: Clips, recomputes: bool) -> None:
    assert_covers(DEMO, clips, recomputes)


@on_a_cpu
def test_it_follows_the_model() -> None:
    model = replace(DEMO.model, upsample_initial_channel=DEMO.model.upsample_initial_channel // 2)
    small = replace(DEMO, model=model, train=replace(DEMO.train, segment_size=6400))
    assert_covers(small, Clips(2, 64, 32))


@pytest.mark.parametrize(
    ("size", "kept", "again"),
    [(1, 3.21, 2.73), (2, 3.10, 3.08), (4, 5.49, 3.90), (8, 7.63, 5.39)],
)
def test_on_a_gpu_it_is_what_an_h100_took(
    monkeypatch: pytest.MonkeyPatch, size: int, kept: float, again: float
) -> None:
    """GB of a compiled step of the full-size v2, clips of 10 s, MLX 0.32.4 on CUDA.

    Convolutions choose their workspace by size, so two clips take less than one.
    """
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.DeviceType.gpu))
    clips = Clips(size, 500, 140)
    assert 1 <= estimate_peak(FULL, clips) / 1e9 / kept < 1.3
    assert 1 <= estimate_peak(FULL, clips, recomputes=True) / 1e9 / again < 1.3


@pytest.mark.parametrize("config", [DEMO, FULL, Config.from_dict({"version": "v2Pro"})])
def test_more_of_anything_takes_more(config: Config) -> None:
    clips = Clips(4, 256, 64)
    peak = estimate_peak(config, clips)
    for more in (Clips(5, 256, 64), Clips(4, 320, 64), Clips(4, 256, 96)):
        assert estimate_peak(config, more) > peak
        again = estimate_peak(config, more, recomputes=True)
        assert again < estimate_peak(config, more)
    longer = replace(config, train=replace(config.train, segment_size=40960))
    assert estimate_peak(longer, clips) > peak


@pytest.mark.parametrize("config", [DEMO, FULL])
@pytest.mark.parametrize("memory", [2e8, 3e9, 16e9])
def test_the_batch_that_fits_is_the_largest(config: Config, memory: float) -> None:
    clips = Clips(1, 512, 128)
    size = batch_that_fits(config, clips, int(memory))
    assert size == 0 or not is_short(config, clips._replace(size=size), int(memory))
    assert is_short(config, clips._replace(size=size + 1), int(memory))


def test_what_is_said() -> None:
    words = describe_shortage(FULL, Clips(16, 512, 128), 8_000_000_000)
    assert words.startswith("a batch of 16 clips of up to 10 s needs about ")
    assert " GB of memory, and 8.0 GB can be had; " in words
    assert "--checkpoint-activations on makes room, or --batch-size " in words
    none = describe_shortage(FULL, Clips(16, 512, 128), 1_000_000_000)
    assert none.endswith("not even one fits; leave the longest clips out, or close other programs")
    assert not is_short(FULL, Clips(16, 512, 128), 0)


def room_for(size: int, recomputes: bool) -> int:
    """Bytes in which so many clips fit, and not one more."""
    clips = Clips(size, 512, 128)
    step = 1_000_000
    return next(
        memory
        for memory in range(step, 1 << 40, step)
        if batch_that_fits(DEMO, clips, memory, recomputes=recomputes) == size
    )


@pytest.mark.parametrize(
    ("size", "fits", "options", "cures"),
    [
        (6, (4, False), {}, ["on makes room", "--batch-size 4 fits", "3 --accumulate 2"]),
        (6, (4, False), {"accumulate": 2}, ["3 --accumulate 4 makes the same steps"]),
        (16, (1, True), {}, ["1 --checkpoint-activations on fits", "16 --checkpoint"]),
        (16, (15, True), {"recomputes": True}, ["--batch-size 15 fits", "8 --accumulate 2 makes"]),
        (1, (1, True), {}, ["--checkpoint-activations on makes room"]),
    ],
)
def test_what_would_help(size: int, fits: tuple[int, bool], options: Any, cures: list[str]) -> None:
    """In memory for so many clips, with or without their activations computed again."""
    words = describe_shortage(DEMO, Clips(size, 512, 128), room_for(*fits), **options)
    assert all(cure in words for cure in cures)
