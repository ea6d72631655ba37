"""Fuzzing: damaged, lying and absurd files load or are refused in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuzz_archives import ARCHIVE_KINDS
from tests.support.fuzz_contents import CONTENT_KINDS
from tests.support.fuzzing import Fault, attempt, faults_of, fuzz, peak_bytes

SMALL = {name: make for name, make in ARCHIVE_KINDS.items() if name != "golden bytes"}
GOLDEN = {"golden bytes": ARCHIVE_KINDS["golden bytes"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, where nothing may appear that no case has written."""
    monkeypatch.chdir(tmp_path)
    written = {"case.pth", "case.safetensors", "folder", "config.json", "pytorch_model.bin", "logs"}
    before = peak_bytes()
    yield tmp_path
    assert {path.name for path in tmp_path.iterdir()} <= written
    assert peak_bytes() - before < 300 << 20


def test_small_archives(folder: Path) -> None:
    tallies = fuzz(SMALL, folder, 150, seed=1)
    assert not faults_of(tallies)
    # Damage that always shows, or never, would test nothing.
    assert sum(tally.loaded for tally in tallies.values()) > 50
    assert all(tally.loaded < tally.cases * 0.6 for tally in tallies.values())


def test_the_golden_voice(folder: Path) -> None:
    assert not faults_of(fuzz(GOLDEN, folder, 15, seed=1))


def test_the_fuzzer_sees_what_must_not_happen(folder: Path) -> None:
    def run_something(path: Path) -> None:
        exec("pass")

    def open_something(path: Path) -> None:
        Path(__file__).read_bytes()

    def crash(path: Path) -> None:
        raise KeyError("a")

    for reader, words in ((run_something, "exec"), (open_something, "open"), (crash, "KeyError")):
        with pytest.raises(Fault, match=words):
            attempt(folder / "case.pth", reader)


@pytest.mark.slow
def test_small_archives_at_length(folder: Path) -> None:
    assert not faults_of(fuzz(SMALL, folder, 5000, seed=3))


@pytest.mark.slow
def test_the_golden_voice_at_length(folder: Path) -> None:
    assert not faults_of(fuzz(GOLDEN, folder, 500, seed=3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONTENT_KINDS)
def test_contents(folder: Path, kind: str) -> None:
    # Patience is for a model of a million layers, not for a slow machine.
    kinds, cases = {kind: CONTENT_KINDS[kind]}, 60 if kind == "resume runs" else 400
    assert not faults_of(fuzz(kinds, folder, cases, seed=3, patience_s=120))
