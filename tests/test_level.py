"""The level of speech, from sentence to sentence."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_vits.synthesis.sound import Level, limit_peaks

RATE = 32000


def tone(peak: float, seconds: float = 1.0) -> np.ndarray:
    times = np.arange(int(seconds * RATE)) / RATE
    return (peak * np.sin(2 * np.pi * 200 * times)).astype(np.float32)


def with_click(wav: np.ndarray, size: float, place: int) -> np.ndarray:
    wav = wav.copy()
    wav[place : place + 20] = size
    return wav


@pytest.mark.parametrize("place", [0, 16000, 31980])
def test_a_click_lowers_its_surroundings_alone(place: int) -> None:
    level, quiet = Level(RATE), tone(0.5)
    spoken = level.apply(with_click(quiet, 4.0, place))
    assert spoken.dtype == np.float32
    assert np.abs(spoken).max() <= 1
    far = np.abs(np.arange(RATE) - place) > 0.022 * RATE
    assert np.array_equal(spoken[far], quiet[far])
    assert np.array_equal(level.apply(quiet), quiet)


def test_a_loud_voice_is_lowered_for_good() -> None:
    level = Level(RATE)
    assert np.abs(level.apply(tone(2.0))).max() == pytest.approx(1, abs=1e-3)
    assert np.abs(level.apply(tone(1.0))).max() == pytest.approx(0.5, abs=1e-3)


def test_what_is_foreseen_has_one_level() -> None:
    level, wavs = Level(RATE), [tone(1.0), with_click(tone(0.5), 8.0, 9000), tone(2.0)]
    level.foresee(wavs)
    peaks = [np.abs(level.apply(wav)).max() for wav in wavs]
    assert peaks == pytest.approx([0.5, 1.0, 1.0], abs=1e-3)


def test_a_limited_peak_does_not_step() -> None:
    limited = limit_peaks(with_click(tone(0.9), 3.0, 16000), RATE)
    gain = limited[15900:15999] / tone(0.9)[15900:15999]
    assert np.abs(np.diff(gain)).max() < 0.01


def test_a_short_loud_piece_is_not_clipped() -> None:
    short = limit_peaks(tone(3.0, 0.05), RATE)
    assert np.abs(short).max() <= 1
    assert np.abs(np.diff(short)).max() < np.abs(np.diff(tone(3.0, 0.05))).max()


def test_upstream_s_level_is_each_piece_s_own() -> None:
    level = Level(RATE, per_piece=True)
    assert np.abs(level.apply(tone(4.0))).max() == pytest.approx(1)
    assert np.array_equal(level.apply(tone(0.5)), tone(0.5))
