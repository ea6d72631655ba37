"""From recordings to clips with transcripts, with a recogniser that is made up."""

from __future__ import annotations

import builtins
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mlx_vits import train
from mlx_vits.cli import app
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing import clips as clips_module
from mlx_vits.preprocessing.clips import LIST, ClipOptions, make_clips, needs_clips
from mlx_vits.preprocessing.recognition import Heard, load_recogniser, recognise_clips
from mlx_vits.preprocessing.sources import read_voice_source
from mlx_vits.preprocessing.transcripts import read_transcripts
from tests.support.tiny import RATE, SEGMENT, hum, make_base, make_voice


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """20 s: four pieces of voice, each after 0.6 s of silence."""
    pieces = [np.concatenate([np.zeros(19200), hum(4.4, 100 + 30 * i)]) for i in range(4)]
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.concatenate(pieces).astype(np.float32), RATE)
    return path


class Whisper:
    """Hears a number in every clip, and counts what it is asked."""

    def __init__(self, monkeypatch: Any, language: str = "en", silent: int | None = None):
        self.heard: list[str] = []
        self.language, self.silent = language, silent
        monkeypatch.setattr(clips_module, "load_recogniser", lambda model: self)

    def __call__(self, path: Path, language: str | None) -> Heard:
        self.heard.append(path.name)
        count = len(self.heard)
        text = "" if count == self.silent else f" it is number {count} | of these. "
        return Heard(text, language or self.language)


def test_recordings_become_clips_with_a_list(
    recording: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whisper = Whisper(monkeypatch, silent=2)
    path = make_clips([recording], tmp_path / "clips", ClipOptions(speaker="me"))
    assert path == tmp_path / "clips" / LIST
    assert len(whisper.heard) == 4
    rows = read_transcripts(path)
    assert [row.text for row in rows] == [f"it is number {i} of these." for i in (1, 3, 4)]
    assert path.read_text().startswith(f"{tmp_path / 'clips' / rows[0].name}|me|EN|it is")
    assert all(row.name.startswith("talk.wav_") for row in rows)
    assert soundfile.info(tmp_path / "clips" / rows[0].name).samplerate == RATE


def test_a_list_that_was_corrected_stays(recording: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whisper = Whisper(monkeypatch)
    path = make_clips([recording], tmp_path / "clips", ClipOptions())
    lines = path.read_text().splitlines()
    corrected = [lines[0].replace("number 1", "number one"), *lines[2:]]  # and one taken out
    path.write_text("\n".join(corrected) + "\n")
    make_clips([recording], tmp_path / "clips", ClipOptions())
    assert len(whisper.heard) == 4  # nothing was listened to again
    assert path.read_text().splitlines() == corrected
    more = tmp_path / "more.wav"
    soundfile.write(more, hum(3.0), RATE)
    make_clips([recording, more], tmp_path / "clips", ClipOptions())
    assert len(whisper.heard) == 5
    texts = [row.text for row in read_transcripts(path)]
    assert texts == [
        "it is number one of these.",
        *(f"it is number {i} of these." for i in (3, 4, 5)),
    ]


def test_an_interrupted_recognition_keeps_what_was_heard(
    recording: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whisper = Whisper(monkeypatch)
    monkeypatch.setattr(clips_module, "_SAVE_EVERY", 1)

    def stop(done: int, count: int, name: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_clips([recording], tmp_path / "clips", ClipOptions(), listening=stop)
    make_clips([recording], tmp_path / "clips", ClipOptions())
    assert len(whisper.heard) == 5  # the third one twice
    assert len(read_transcripts(tmp_path / "clips" / LIST)) == 4


def test_what_cannot_be_recognised_is_named(
    recording: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    Whisper(monkeypatch, language="de")
    with pytest.raises(DataError, match=r"is in a language \(de\).*--language"):
        make_clips([recording], tmp_path / "clips", ClipOptions())
    assert "--language" not in str(make_clips([recording], tmp_path / "b", ClipOptions("en")))
    for sources, words in (
        ([tmp_path / "no.wav"], "no such recording"),
        ([tmp_path / "b" / "empty"], "is empty of recordings"),
    ):
        (tmp_path / "b" / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=words):
            make_clips(sources, tmp_path / "c", ClipOptions())


def test_languages_are_upstreams(tmp_path: Path) -> None:
    rows = recognise_clips([tmp_path / "a.wav"], lambda path, language: Heard("はい", "ja"))
    assert [row.language for row in rows] == ["ja"]


def test_without_a_recogniser_one_sentence_says_what_to_do(monkeypatch: Any) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **more: Any) -> Any:
        if name in ("faster_whisper", "mlx_whisper"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for module in ("faster_whisper", "mlx_whisper"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(UserError, match=r"\[asr\].*--transcripts|EXTRAS=asr.*--transcripts"):
        load_recogniser()


SRT = """1
00:00:00,600 --> 00:00:05,000
<i>It is number one,</i>
and so on.

2
00:00:05,600 --> 00:00:07,000
Short
3
00:00:07,000 --> 00:00:10,000
{\\an8}but &amp; merged | here.

4
00:00:10,000 --> 00:00:10,600
[music]

5
00:00:15,600 --> 00:00:20,040
And four.
"""
LABELS = """0.600000\t5.000000\tIt is number one, and so on.
\\\t100.0\t200.0
5.600000\t10.000000\tShort but & merged here.
15.600000\t20.040000\tAnd four.
"""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("talk.srt", SRT),
        ("Talk.VTT", "WEBVTT\n\nNOTE none\n\n" + SRT.replace(",", ".").replace("one.", "one,")),
        ("talk.txt", LABELS),
    ],
)
def test_subtitles_and_labels_are_cuts_and_transcripts(
    name: str, content: str, recording: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whisper = Whisper(monkeypatch)
    source = tmp_path / "in"
    source.mkdir()
    recording.rename(source / recording.name)
    (source / name).write_text(content, encoding="utf-8-sig")
    assert needs_clips([source])
    path = make_clips([source], tmp_path / "clips", ClipOptions())
    assert not whisper.heard
    rows = read_transcripts(path)
    assert [row.text.replace(".", ",") for row in rows] == [
        "It is number one, and so on,",
        "Short but & merged here,",
        "And four,",
    ]
    lengths = [soundfile.info(tmp_path / "clips" / row.name).duration for row in rows]
    assert lengths == pytest.approx([4.4, 4.4, 4.4])
    # A line taken out stays out; subtitles that change are cut again.
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert len(read_transcripts(make_clips([source], tmp_path / "clips", ClipOptions()))) == 2
    (source / name).write_text(content.replace("four", "five"))
    rows = read_transcripts(make_clips([source], tmp_path / "clips", ClipOptions()))
    assert [row.text[:5] for row in rows] == ["It is", "Short", "And f"]
    assert rows[2].text.startswith("And five")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("talk.srt", SRT.replace("15,600", "09,000"), r"two texts overlap at 9\.00 s"),
        ("talk.txt", LABELS + "3.0\t3.0\tpoint\n", r"'point' at 3\.00 s has no length"),
        ("talk.txt", LABELS + "30.0\t33.0\tbeyond\n", r"ends at 20\.0 s, .* go on at 30\.0 s"),
        ("talk.srt", "words alone\n", r"talk\.srt: holds no subtitles"),
    ],
)
def test_subtitles_that_do_not_fit_are_refused(
    name: str, content: str, words: str, recording: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        make_clips([recording], tmp_path / "clips", ClipOptions())


def test_times_are_never_read_aloud(recording: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for stem in ("a", "talk"):
        (folder / f"{stem}.wav").write_bytes(recording.read_bytes())
    (folder / "a.txt").write_text("one two three")
    (folder / "talk.txt").write_text(LABELS)
    with pytest.raises(DataError, match=r"talk\.txt: holds texts with times, by which"):
        read_voice_source(folder, 0)
    with pytest.raises(DataError, match=r"labels\.txt: holds texts with times.*leave"):
        read_transcripts((folder / "talk.txt").rename(tmp_path / "labels.txt"))


def test_subtitles_count_for_a_long_recording_and_text_for_a_clip(tmp_path: Path) -> None:
    """Recognisers write both."""
    for name, seconds in (("clip", 3.0), ("talk", 16.0)):
        folder = tmp_path / name
        folder.mkdir()
        soundfile.write(folder / f"{name}.wav", hum(seconds), RATE)
        (folder / f"{name}.txt").write_text("It is number one, and so on.")
        (folder / f"{name}.srt").write_text(SRT)
    assert not needs_clips([tmp_path / "clip"])
    assert needs_clips([tmp_path / "talk"])
    (tmp_path / "talk" / "talk.srt").unlink()
    assert needs_clips([tmp_path / "talk"])  # a text as of an interview does not tell clips


def test_clips_with_transcripts_are_not_cut(tmp_path: Path, recording: Path) -> None:
    told = make_voice(tmp_path / "told")
    assert not needs_clips([told])
    beside = tmp_path / "beside"
    beside.mkdir()
    soundfile.write(beside / "a.wav", hum(2.0), RATE)
    assert needs_clips([beside])
    (beside / "a.txt").write_text("one two three")
    assert not needs_clips([beside])
    assert needs_clips([recording])
    assert needs_clips([told, recording])


def test_a_recording_is_prepared_and_trained_on_by_name(
    recording: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whisper = Whisper(monkeypatch)
    monkeypatch.chdir(tmp_path)
    base = str(make_base(tmp_path / "base").generator)
    runner = CliRunner()
    done = runner.invoke(app, ["prepare", str(recording), "--voice", "me", "--base", base])
    assert done.exit_code == 0, done.output
    assert "Transcripts: voices/me/clips/transcripts.list" in done.output
    assert (tmp_path / "voices" / "me" / "prepared" / "2-name2text.txt").is_file()
    short = ["--base", base, "--steps", "1", "--segment-size", str(SEGMENT), "--batch-size", "2"]
    done = runner.invoke(train.app, ["--voice", "me", *short])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "me" / "verdict.json").is_file()
    # The same in one command, from the recording itself.
    done = runner.invoke(train.app, ["--voice", str(recording), *short])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "talk" / "verdict.json").is_file()
    assert len(whisper.heard) == 8


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """40 s: speech and pauses of 0.5 s over a bed of music that is never below -34 dB."""
    pieces = [np.concatenate([hum(4.5, 100 + 10 * i), np.zeros(16000)]) for i in range(8)]
    bed = 0.06 * np.sin(2 * np.pi * 220 * np.arange(8 * (144000 + 16000)) / RATE)
    path = tmp_path / "music.wav"
    soundfile.write(path, (np.concatenate(pieces) + bed).astype(np.float32), RATE)
    return path


def _prepare(base: Path, *arguments: object) -> Any:
    return CliRunner().invoke(app, ["prepare", *map(str, arguments), "--base", str(base)])


def test_a_slice_too_long_for_a_clip_is_told_with_its_cure_before_recognition(
    music: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whisper = Whisper(monkeypatch)
    monkeypatch.chdir(tmp_path)
    base = make_base(tmp_path / "base").generator
    done = _prepare(base, music, "--voice", "me")
    assert done.exit_code == 1
    words = done.stderr.strip()
    assert words.startswith("error: music.wav: 1 slice of 40 s, at most 38 s make a clip; no pause")
    assert whisper.heard == []
    cure = re.search(r"give (--threshold -[0-9]+) to cut it", words)
    assert cure, words
    done = _prepare(base, music, "--voice", "me", *cure[1].split())
    assert done.exit_code == 0, done.output
    assert len(whisper.heard) == 8
    # What was corrected stays, although the option is not given again.
    path = Path("voices/me/clips") / LIST
    corrected = path.read_text().replace("number 1 ", "number one ")
    path.write_text(corrected)
    assert _prepare(base, music, "--voice", "me").exit_code == 0
    assert (len(whisper.heard), path.read_text()) == (8, corrected)
    # Cut in other places, what has not moved is not listened to again, and nothing is lost.
    done = _prepare(base, music, "--voice", "me", "--min-length", 9000)
    assert done.exit_code == 0, done.output
    assert len(read_transcripts(path)) == len(whisper.heard) - 8 == 4
    assert "the former list is kept in" in done.output
    assert path.with_name(f"{LIST}.old").read_text() == corrected


def test_only_slices_that_fit_are_recognised(
    music: Path, recording: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whisper, said = Whisper(monkeypatch), list[str]()
    make_clips([music, recording], tmp_path / "clips", ClipOptions(), notice=said.append)
    assert len(said) == 1
    assert said[0].startswith("music.wav: 1 slice of 40 s")
    assert len(whisper.heard) == 4
    assert all(name.startswith("talk.wav") for name in whisper.heard)
    with pytest.raises(DataError, match=r"music\.wav: 1 slice of 40 s"):
        make_clips([music, recording], tmp_path / "clips", ClipOptions(strict=True))


def test_a_recording_without_a_pause_is_to_be_cut_by_hand(tmp_path: Path, monkeypatch: Any) -> None:
    whisper = Whisper(monkeypatch)
    path = tmp_path / "hum.wav"
    soundfile.write(path, (0.3 * np.sin(np.arange(40 * RATE) / 20)).astype(np.float32), RATE)
    with pytest.raises(DataError, match=r"cut it by hand into clips of 3 to 10 s"):
        make_clips([path], tmp_path / "clips", ClipOptions())
    assert whisper.heard == []


def test_a_minimum_that_makes_slices_too_long_is_named(
    recording: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    Whisper(monkeypatch)
    wav, _ = soundfile.read(recording)
    soundfile.write(recording, np.concatenate([wav, wav]), RATE)
    options = ClipOptions(slicing={"min_length_ms": 60000})
    with pytest.raises(DataError, match="give --min-length 4000 to cut it"):
        make_clips([recording], tmp_path / "clips", options)


def test_options_of_cutting_reach_training_as_well(
    music: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whisper = Whisper(monkeypatch)
    monkeypatch.chdir(tmp_path)
    base = str(make_base(tmp_path / "base").generator)
    short = ["--steps", "1", "--segment-size", str(SEGMENT), "--batch-size", "2"]
    cut = ["--threshold", "-20", "--min-length", "9000"]
    done = CliRunner().invoke(
        train.app, ["--voice", str(music), "--base", base, *short, *cut], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert len(whisper.heard) == 4


def test_options_of_cutting_that_cannot_be_followed_are_refused(
    recording: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    Whisper(monkeypatch)
    monkeypatch.chdir(tmp_path)
    base = make_base(tmp_path / "base").generator
    told = make_voice(tmp_path / "told")
    for source, options, words in (
        (told, ["--threshold", "-30"], "--threshold: is for recordings, which are cut into clips"),
        (recording, ["--min-length", "100"], "give --min-length at least as much as"),
    ):
        done = _prepare(base, source, "--voice", "me", *options)
        assert done.exit_code == 1
        assert words in done.stderr
        done = CliRunner().invoke(
            train.app, ["--voice", str(source), "--base", str(base), *options]
        )
        assert done.exit_code == 1
        assert words in done.stderr


@pytest.mark.parametrize(
    "name", ["a|b.wav", "a\nb.wav", f"{'n' * 210}.wav"], ids=["bar", "line", "long"]
)
def test_a_recording_that_no_list_can_name_is_refused_before_it_is_cut(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / name, hum(1.0), RATE)
    with pytest.raises(DataError, match=r"plain name|rename it|shorten it"):
        make_clips([tmp_path / "in"], tmp_path / "clips", ClipOptions())
    assert not list((tmp_path / "clips").glob("*.wav"))


def test_a_sub_folder_whose_name_no_clip_can_have_is_left_out(tmp_path: Path) -> None:
    for folder in ("good", "a\tb"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "1.wav", hum(1.5), RATE)
        (tmp_path / folder / "1.txt").write_text("Hello there.", encoding="utf-8")
    faults: list[str] = []
    voice = read_voice_source(tmp_path, fault=faults.append)
    assert [clip.name for clip in voice.clips] == ["1.wav"]
    assert any("is not a plain name" in fault for fault in faults)
