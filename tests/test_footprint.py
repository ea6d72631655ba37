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


@pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="the factors are those of a CPU"
)
@pytest.mark.parametrize("clips", [Clips(1, 64, 32), Clips(3, 128, 32), Clips(1, 512, 96)], ids=str)
def test_the_estimate_is_what_a_step_takes(clips: Clips) -> None:
    """Of the demo's base, within a quarter; the fit itself leaves 17 to 21 %."""
    assert estimate_peak(DEMO, clips) == pytest.approx(measure_peak(DEMO, clips), rel=0.25)


@pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="the factors are those of a CPU"
)
def test_it_follows_the_model() -> None:
    model = replace(DEMO.model, upsample_initial_channel=DEMO.model.upsample_initial_channel // 2)
    small = replace(DEMO, model=model, train=replace(DEMO.train, segment_size=6400))
    clips = Clips(2, 64, 32)
    assert estimate_peak(small, clips) == pytest.approx(measure_peak(small, clips), rel=0.25)


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
    assert 0.94 < estimate_peak(FULL, clips) / 1e9 / kept < 1.32
    assert 0.94 < estimate_peak(FULL, clips, recomputes=True) / 1e9 / again < 1.1


@pytest.mark.parametrize("config", [DEMO, FULL, Config.from_dict({"version": "v2Pro"})])
def test_more_of_anything_takes_more(config: Config) -> None:
    clips = Clips(4, 256, 64)
    peak = estimate_peak(config, clips)
    for more in (Clips(5, 256, 64), Clips(4, 320, 64), Clips(4, 256, 96)):
        assert estimate_peak(config, more) > peak
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


@pytest.mark.parametrize(
    ("size", "gigabytes", "options", "cures"),
    [
        (6, 5.2, {}, ["--checkpoint-activations on makes room", "4 fits", "3 --accumulate 2"]),
        (6, 5.2, {"accumulate": 2}, ["3 --accumulate 4 makes the same steps"]),
        (16, 3.2, {}, ["1 --checkpoint-activations on fits", "16 --checkpoint-activations on"]),
        (16, 8.0, {"recomputes": True}, ["--batch-size 15 fits", "8 --accumulate 2 makes"]),
        (1, 3.1, {}, ["--checkpoint-activations on makes room"]),
    ],
)
def test_what_would_help(size: int, gigabytes: float, options: Any, cures: list[str]) -> None:
    words = describe_shortage(FULL, Clips(size, 512, 128), int(gigabytes * 1e9), **options)
    assert all(cure in words for cure in cures)
