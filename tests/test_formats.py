"""Recordings that libsndfile cannot open, by way of ffmpeg: named one by one and in a folder.

A stand-in takes ffmpeg's place on the PATH: what it "decodes" is a WAV behind eight bytes of an
MP4. Like ffmpeg it takes what stands before a colon for a protocol.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mlx_vits.audio import ffmpeg as decoding
from mlx_vits.audio.files import read_audio, read_seconds, read_speech
from mlx_vits.audio.formats import FFMPEG_SUFFIXES, SUFFIXES, open_recording
from mlx_vits.checkpoints.base import Base
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.clips import needs_clips
from mlx_vits.preprocessing.recordings import slice_recordings
from mlx_vits.preprocessing.sources import find_audio, read_voice_source
from tests.support.bench import Bench, content, take
from tests.support.tiny import RATE, make_base

pytestmark = pytest.mark.machine  # with an ffmpeg of a user's own, and with none
MARK = b"\0\0\0\x20ftyp"
PROGRAM = """#!/bin/sh
while [ $# -gt 1 ]; do
    [ "$1" = -i ] && input="$2"
    shift
done
echo "$input" >> "$(dirname "$0")/log"
case "$input" in
    file:*) input="${input#file:}" ;;
    *:*) exit 1 ;;
esac
[ "$(head -c 8 < "$input" | tail -c 4)" = ftyp ] || exit 1
tail -c +9 < "$input" > "$1"
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Base:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


FULL = "too little room in {} to decode it; free some space there, or set TMPDIR to a folder with"


class StandIn:
    """ffmpeg, or none."""

    def __init__(self, folder: Path, monkeypatch: Any):
        self.folder, self.log = folder, folder / "log"
        folder.mkdir()
        (folder / "ffmpeg").write_text(PROGRAM)
        (folder / "ffmpeg").chmod(0o755)
        self.patch = monkeypatch
        self.patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def act(self, script: str) -> None:
        """Does something else; `$last` is the file to write."""
        (self.folder / "ffmpeg").write_text(f"#!/bin/sh\nfor last; do :; done\n{script}\n")

    def remove(self) -> None:
        self.patch.setattr(shutil, "which", lambda name: None)

    @property
    def decoded(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.is_file() else 0


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: Any) -> StandIn:
    return StandIn(tmp_path / "bin", monkeypatch)


def wrap(path: Path, name: str) -> Path:
    """A recording in a form that only the stand-in reads, in place of itself."""
    wrapped = path.with_name(name)
    wrapped.write_bytes(MARK + path.read_bytes())
    path.unlink()
    return wrapped


def record(path: Path, number: int = 0, rate: int = RATE) -> Path:
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, take(number), rate)
    return path


def wrap_voice(bench: Bench, endings: tuple[str, ...]) -> None:
    """Gives the clips of a voice these endings."""
    lines = (bench.source / "transcripts.tsv").read_text().splitlines()
    renamed = []
    for index, line in enumerate(lines):
        name, text = line.split("\t")
        ending = endings[index % len(endings)]
        if ending != ".wav":
            name = wrap(bench.source / name, f"{Path(name).stem}{ending}").name
        renamed.append(f"{name}\t{text}\n")
    (bench.source / "transcripts.tsv").write_text("".join(renamed))


@pytest.mark.parametrize("name", ["a.m4a", "A B.MP4", "-n.webm", "concat:x.aac", "http:y.wma"])
def test_a_recording_is_read_whatever_its_name(
    name: str, ffmpeg: StandIn, tmp_path: Path, monkeypatch: Any
) -> None:
    plain = record(tmp_path / "plain.wav", rate=48000)
    expected = read_audio(plain), read_speech(plain, RATE), read_seconds(plain)
    monkeypatch.chdir(tmp_path)
    path = Path(wrap(plain, name).name)
    found = read_audio(path), read_speech(path, RATE), read_seconds(path)
    assert found[0].rate == 48000
    np.testing.assert_array_equal(found[0].wav, expected[0].wav)
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[2] == expected[2] == len(take(0)) / 48000


@pytest.mark.parametrize("name", [f"clip{ending}" for ending in FFMPEG_SUFFIXES] + ["x.M4A"])
def test_without_ffmpeg_one_sentence_says_so(name: str, ffmpeg: StandIn, tmp_path: Path) -> None:
    ffmpeg.remove()
    path = wrap(record(tmp_path / "plain.wav"), name)
    for read in (read_audio, read_seconds, lambda path: read_speech(path, RATE)):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}: can only be read with ffmpeg, which is not installed; install it, or give "
            "the recording as .wav, .flac, .ogg or .mp3"
        )
        assert not isinstance(caught.value, DataError)  # which would leave the clip out


@pytest.mark.parametrize("ending", SUFFIXES)
def test_what_is_no_recording_is_named(ending: str, ffmpeg: StandIn, tmp_path: Path) -> None:
    path = tmp_path / f"clip{ending}"
    path.write_text("to be recorded")
    with pytest.raises(DataError, match=r"clip\.\w+: holds no sound that ffmpeg can read; export"):
        read_audio(path)
    ffmpeg.remove()
    words = r"is not audio that can be read; give it as .*, install ffmpeg, or take it out$"
    with pytest.raises(DataError, match=words):
        read_audio(path)
    with pytest.raises(DataError, match="there is no such recording"), open_recording(path / "x"):
        pass


def test_a_folder_of_clips_of_any_form(base: Base, tmp_path: Path, ffmpeg: StandIn) -> None:
    """Prepared, they are those of the same clips as WAV, but for their names."""
    plain, wrapped = Bench(tmp_path / "plain", base, 5), Bench(tmp_path / "wrapped", base, 5)
    endings = (".m4a", ".wav", ".MP4", ".aac", ".webm")
    wrap_voice(wrapped, endings)
    assert plain.make() == wrapped.make() == []
    theirs = content(plain.output)
    for name, data in content(wrapped.output).items():
        for index, ending in enumerate(endings):
            name = name.replace(f"clip_{index}{ending}", f"clip_{index}.wav")
        if name.endswith((".wav", ".pt")):
            assert data == theirs.pop(name)
    assert not [name for name in theirs if name.endswith((".wav", ".pt"))]


def test_a_clip_that_ffmpeg_cannot_read_is_left_out(
    base: Base, tmp_path: Path, ffmpeg: StandIn
) -> None:
    bench = Bench(tmp_path / "voice", base)
    wrap_voice(bench, (".m4a",))
    (bench.source / "clip_1.m4a").write_text("moov atom not found")
    (dropped,) = bench.make()
    assert dropped.reason == (
        f"{bench.source / 'clip_1.m4a'}: holds no sound that ffmpeg can read; export it again as "
        "WAV, or take it out"
    )


def test_a_folder_of_clips_without_ffmpeg(base: Base, tmp_path: Path, ffmpeg: StandIn) -> None:
    """Nothing is left out: the whole voice waits for ffmpeg."""
    ffmpeg.remove()
    bench = Bench(tmp_path / "voice", base)
    wrap_voice(bench, (".wav", ".m4a", ".wav"))
    with pytest.raises(UserError, match=r"clip_1\.m4a: can only be read with ffmpeg, which is"):
        bench.make()
    assert not bench.output.exists()
    assert not bench.partial.exists()


def test_what_is_prepared_needs_ffmpeg_no_more(base: Base, tmp_path: Path, ffmpeg: StandIn) -> None:
    """Not even where a transcript has changed; nor is it decoded again."""
    bench = Bench(tmp_path / "voice", base)
    wrap_voice(bench, (".m4a",))
    bench.make()
    before, count = content(bench.output), ffmpeg.decoded
    assert count
    bench.make()
    assert ffmpeg.decoded == count
    ffmpeg.remove()
    bench.make()
    assert content(bench.output) == before
    lines = (bench.source / "transcripts.tsv").read_text()
    (bench.source / "transcripts.tsv").write_text(lines.replace("modern", "old"))
    bench.make()
    assert "old" in (bench.output / "2-name2text.txt").read_text()


def test_the_original_beside_a_converted_clip_does_not_count(tmp_path: Path) -> None:
    for name in ("a.m4a", "a.wav", "b.mp4", "c.flac", "d.txt", "._b.mp4", "e.WebM", "a b.m4a"):
        (tmp_path / name).touch()
    assert find_audio(tmp_path) == ["a b.m4a", "a.wav", "b.mp4", "c.flac", "e.WebM"]
    (tmp_path / "b.aac").touch()
    (tmp_path / "transcripts.tsv").write_text("a.wav\tone\nb.mp4\ttwo\n")
    with pytest.raises(DataError, match=r"b\.aac and b\.mp4 differ in ending only; rename one"):
        read_voice_source(tmp_path)


def test_transcripts_in_every_form(tmp_path: Path) -> None:
    """Beside each clip, and LJ Speech's without an ending."""
    for index in range(2):
        (tmp_path / f"clip_{index}.m4a").touch()
        (tmp_path / f"clip_{index}.txt").write_text("one")
    assert not needs_clips([tmp_path])
    names = ["clip_0.m4a", "clip_1.m4a"]
    assert [clip.name for clip in read_voice_source(tmp_path).clips] == names
    (tmp_path / "metadata.csv").write_text("clip_0|one|one\nclip_1|two|two\n")
    assert [clip.name for clip in read_voice_source(tmp_path).clips] == names


def test_a_folder_of_recordings_to_be_cut(tmp_path: Path, ffmpeg: StandIn) -> None:
    place = tmp_path / "in"
    paths = [record(place / f"{index}.wav", index) for index in range(2)]
    theirs = slice_recordings(paths, tmp_path / "theirs")
    for path in paths:
        wrap(path, f"{path.stem}.mkv")
    assert needs_clips([place])
    made = slice_recordings([place / name for name in find_audio(place)], tmp_path / "made")
    for ours, other in zip(made, theirs, strict=True):
        assert ours.name == other.name.replace(".wav_", ".mkv_")
        data = (tmp_path / "made" / ours.name).read_bytes()
        assert data == (tmp_path / "theirs" / other.name).read_bytes()
    ffmpeg.remove()
    with pytest.raises(UserError, match=r"0\.mkv: can only be read with ffmpeg, which is not"):
        slice_recordings([place / "0.mkv"], tmp_path / "again")


def refusal(path: Path) -> str:
    """Why the recording is not read, where that is no fault of its own: nothing is left out."""
    with pytest.raises(UserError) as caught:
        read_audio(path)
    assert not isinstance(caught.value, DataError)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_ffmpeg_is_stopped_with_all_that_it_has_started(
    ffmpeg: StandIn, tmp_path: Path, monkeypatch: Any
) -> None:
    """The stand-in starts a program that goes on, and itself never ends."""
    monkeypatch.setattr(decoding, "_START_SECONDS", 0.5)
    alive = tmp_path / "alive"
    ffmpeg.act(f'(while :; do echo >> "{alive}"; sleep 0.05; done) & sleep 1000')
    path = wrap(record(tmp_path / "plain.wav"), "a.m4a")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(
        DataError, match=r"a\.m4a: ffmpeg has not finished decoding it within 1 s; exp"
    ):
        read_audio(path)
    assert not list((tmp_path / "temporary").iterdir())
    size = alive.stat().st_size
    assert size
    time.sleep(0.2)
    assert alive.stat().st_size == size


def test_a_full_temporary_folder(ffmpeg: StandIn, tmp_path: Path, monkeypatch: Any) -> None:
    """ffmpeg leaves a part of the recording then, and returns 0."""
    plain = record(tmp_path / "plain.wav")
    half = f'head -c 30000 "{plain}" > "$last"; echo "Error: No space left on device" >&2'
    path = tmp_path / "a.m4a"
    path.write_bytes(MARK)
    full = FULL.format(tempfile.gettempdir())
    for status in (0, 1):
        ffmpeg.act(f"{half}; exit {status}")
        assert full in refusal(path)
    ffmpeg.act(f'cp "{plain}" "$last"')
    assert len(read_audio(path).wav) == len(take(0))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(40_000))
    assert full in refusal(path)


def test_no_temporary_folder(ffmpeg: StandIn, tmp_path: Path, monkeypatch: Any) -> None:
    path = wrap(record(tmp_path / "plain.wav"), "a.m4a")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert FULL.format(tmp_path / "gone") in refusal(path)


def test_an_ffmpeg_that_cannot_be_run(ffmpeg: StandIn, tmp_path: Path) -> None:
    path = wrap(record(tmp_path / "plain.wav"), "a.m4a")
    (ffmpeg.folder / "ffmpeg").write_text("#!/nowhere/sh\n")
    with pytest.raises(UserError) as caught:
        read_audio(path)
    assert str(caught.value) == (
        f"{ffmpeg.folder / 'ffmpeg'}: cannot be run ({os.strerror(errno.ENOENT)}); install ffmpeg "
        "again"
    )


def test_a_clip_of_hours_is_not_decoded_whole(ffmpeg: StandIn, tmp_path: Path) -> None:
    """But a recording that is cut into clips is."""
    plain, asked = record(tmp_path / "plain.wav"), tmp_path / "asked"
    ffmpeg.act(f'echo "$@" > "{asked}"; cp "{plain}" "$last"')
    path = tmp_path / "a.m4a"
    path.write_bytes(MARK)
    read_audio(path)
    assert " -t 601" in asked.read_text()
    slice_recordings([path], tmp_path / "slices")
    assert " -t " not in asked.read_text()


def test_a_recorder_that_lost_its_power(ffmpeg: StandIn, tmp_path: Path) -> None:
    """Its header has no samples yet; ffmpeg reads them all the same."""
    plain = record(tmp_path / "plain.wav")
    data = bytearray(plain.read_bytes())
    data[40:44] = bytes(4)
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    ffmpeg.act(f'cp "{plain}" "$last"')
    assert len(read_audio(path).wav) == len(take(0))
    ffmpeg.remove()
    with pytest.raises(DataError, match=r"a\.wav: holds no sound; take it out"):
        read_audio(path)
