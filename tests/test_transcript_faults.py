"""A faulty line or file costs its own clip, never the good ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_vits.checkpoints.base import Base
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.prepared import TEXT_FILE, read_text_lines
from tests.support.bench import Bench
from tests.support.tiny import make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Base:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


def _append(line: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / "transcripts.tsv").open("a", encoding="utf-8") as file:
            file.write(line)

    return spoil


def _rewrite(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "transcripts.tsv"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return spoil


def _twin(folder: Path) -> None:
    (folder / "clip_0.flac").write_bytes((folder / "clip_0.wav").read_bytes())


def _by_text_files(folder: Path) -> None:
    path = folder / "transcripts.tsv"
    for line in path.read_text().splitlines():
        name, text = line.split("\t")
        (folder / name).with_suffix(".txt").write_text("" if name == "clip_2.wav" else text)
    path.unlink()


# What is spoilt, the sentence on it, and how many of the three clips are left.
FAULTS = {
    "a clip that is not there": (_append("gone.wav\twords\n"), "lists gone.wav", 3),
    "no line": (_rewrite("clip_1.wav", "clip_9.wav"), "lists clip_9.wav", 2),
    "no text": (_append("more.wav\t\n"), "gives no text for more.wav", 3),
    "another form": (_append("clip_2.wav and its words\n"), "is not `file<TAB>text`", 3),
    "twice": (_append("clip_0.wav\tother words\n"), "lists clip_0.wav a second time", 3),
    "another folder": (_append("../clip_0.wav\twords\n"), "does not name a file of the folder", 3),
    "a twin": (_twin, "clip_0.flac and clip_0.wav differ in ending only", 2),
    "a folder": (lambda folder: (folder / "a.wav").mkdir(), "is a folder, not a recording", 3),
    "a dead link": (
        lambda folder: (folder / "a.wav").symlink_to("/nowhere/a.wav"),
        "is a link to nothing",
        3,
    ),
    "an empty text beside its clip": (_by_text_files, "is empty; write what is said", 2),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_the_other_clips_are_prepared(kind: str, tmp_path: Path, base: Base) -> None:
    spoil, words, left = FAULTS[kind]
    bench = Bench(tmp_path, base)
    spoil(bench.source)
    with pytest.raises(DataError, match=re.escape(words)):
        bench.make(strict=True, held_out=0)
    assert not bench.output.exists()
    reasons = [clip.reason for clip in bench.make(held_out=0)]
    assert words in reasons[0]
    lines = read_text_lines(bench.output / TEXT_FILE)
    assert len(lines) == left
    # Said again the next time, and nothing is made anew.
    assert [clip.reason for clip in bench.make(held_out=0)] == reasons


def test_a_clip_whose_line_is_faulty_is_named_once(tmp_path: Path, base: Base) -> None:
    bench = Bench(tmp_path, base)
    path = bench.source / "transcripts.tsv"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first.split("\t")[0] + "\t", *others]))
    (dropped,) = bench.make(held_out=0)
    assert dropped.reason.endswith("line 1 gives no text for clip_0.wav; write what is said in it")


def test_where_no_line_can_be_used_the_first_is_the_error(tmp_path: Path, base: Base) -> None:
    bench = Bench(tmp_path, base)
    (bench.source / "transcripts.tsv").write_text("clip_0.wav\t\nclip_1.wav\t\n")
    with pytest.raises(DataError, match=r"line 1 gives no text for clip_0\.wav"):
        bench.make()
    assert not bench.output.exists()
