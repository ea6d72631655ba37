"""Pitch of made-up sound, as the evaluation and the demo base's recipe track it."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.eval_demo.pitch import PITCH_RATE, compare_pitch, track_pitch


def _voice_like(hertz: np.ndarray) -> np.ndarray:
    """Harmonics with falling amplitudes, of a pitch that is given sample by sample."""
    phase = 2 * np.pi * np.cumsum(hertz) / PITCH_RATE
    return sum(np.sin(k * phase) / k for k in range(1, 12)) / 4


def test_the_pitch_of_a_sweep() -> None:
    hertz = np.linspace(100, 300, 2 * PITCH_RATE)
    track = track_pitch(_voice_like(hertz))
    centres = hertz[400 + 160 * np.arange(len(track))]
    assert (track > 0).all()
    np.testing.assert_allclose(track, centres, rtol=0.02)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, PITCH_RATE)
    assert (track_pitch(noise) > 0).mean() < 0.1
    assert not track_pitch(np.zeros(PITCH_RATE)).any()
    assert len(track_pitch(np.zeros(100))) == 0


def test_pauses_are_unvoiced() -> None:
    sound = _voice_like(np.full(PITCH_RATE, 150.0))
    track = track_pitch(np.concatenate([sound, np.zeros(PITCH_RATE), sound]))
    assert track[10:90] == pytest.approx(150, rel=0.01)
    assert not track[105:190].any()


def test_the_agreement_of_pitch_tracks() -> None:
    up = np.linspace(100, 200, 50)
    assert compare_pitch(up, 2 * up).correlation == pytest.approx(1.0)
    assert compare_pitch(up, up[::-1]).correlation < -0.9  # type: ignore[operator]
    half = np.where(np.arange(50) < 25, up, 0.0)
    assert compare_pitch(up, half) == (pytest.approx(1.0), 0.5, 25)
    assert compare_pitch(up, np.zeros(50)) == (None, 0.0, 0)
    assert compare_pitch(up, np.full(50, 120.0)).correlation is None
