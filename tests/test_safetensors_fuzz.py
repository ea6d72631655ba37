"""Fuzzing: safetensors files whose headers lie load or are refused in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuzz_safetensors import SAFETENSORS_KINDS
from tests.support.fuzzing import faults_of, fuzz, peak_bytes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, where nothing may appear that no case has written."""
    monkeypatch.chdir(tmp_path)
    before = peak_bytes()
    yield tmp_path
    assert {path.name for path in tmp_path.iterdir()} <= {"weights.safetensors", "config.json"}
    assert peak_bytes() - before < 300 << 20


def test_headers_that_lie(folder: Path) -> None:
    tallies = fuzz(SAFETENSORS_KINDS, folder, 15, seed=1)
    assert not faults_of(tallies)
    # Damage that always shows, or never, would test nothing.
    assert 0 < sum(tally.loaded for tally in tallies.values()) < 36


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAFETENSORS_KINDS)
def test_headers_that_lie_at_length(kind: str, folder: Path) -> None:
    assert not faults_of(fuzz({kind: SAFETENSORS_KINDS[kind]}, folder, 400, seed=3))
