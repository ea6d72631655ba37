"""Fuzzing: damaged, lying and absurd recordings are read or are refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fuzz_audio import AUDIO_KINDS
from tests.support.fuzzing import faults_of, fuzz, peak_bytes


def test_recordings(tmp_path: Path) -> None:
    before = peak_bytes()
    tallies = fuzz(AUDIO_KINDS, tmp_path, 12, seed=1, patience_s=10)
    assert not faults_of(tallies)
    assert peak_bytes() - before < 300 << 20
    # Damage that always shows, or never, would test nothing.
    cases, loaded = (
        sum(getattr(t, name) for t in tallies.values()) for name in ("cases", "loaded")
    )
    assert 0.2 * cases < loaded < 0.8 * cases


@pytest.mark.slow
def test_recordings_at_length(tmp_path: Path) -> None:
    assert not faults_of(fuzz(AUDIO_KINDS, tmp_path, 1000, seed=2, patience_s=10))
