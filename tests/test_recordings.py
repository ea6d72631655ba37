"""Recordings as people have them: channels that cancel out, headers that lie, absurd formats.

Whole reads (`read_audio`) and streamed ones (`stream_recording`) have to give the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mlx_vits.audio.files import read_audio, read_seconds, read_speech
from mlx_vits.audio.streams import stream_recording
from mlx_vits.cli import app
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.preprocessing.recordings import slice_recordings
from tests.support.bench import Bench
from tests.support.tiny import RATE, hum, make_base

VOICE = hum(1.5)
NOISE = np.float32(0.003) * np.random.default_rng(0).standard_normal((8, len(VOICE)), np.float32)
DEAD = np.zeros_like(VOICE)
READERS = {
    "whole": read_audio,
    "seconds": read_seconds,
    "streamed": lambda path: list(stream_recording(path, RATE)),
}


@pytest.fixture(autouse=True)
def no_ffmpeg(monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def record(path: Path, *channels: np.ndarray, rate: int = RATE, **form: str) -> Path:
    soundfile.write(path, np.stack(channels, axis=1), rate, **form)
    return path


def patch(path: Path, at: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def tell_frames(path: Path, frames: int) -> Path:
    """Puts a number of frames, 36 bits, into the header of a FLAC; 0 is "unknown"."""
    rest = path.read_bytes()[21] & 0xF0
    return patch(path, 21, bytes([rest | frames >> 32]) + (frames & 0xFFFFFFFF).to_bytes(4, "big"))


def read_both_ways(path: Path) -> np.ndarray:
    wav, streamed = read_audio(path).wav, np.concatenate(list(stream_recording(path, RATE)))
    np.testing.assert_array_equal(wav, streamed)
    return wav


@pytest.mark.parametrize(
    ("channels", "taken"),
    [
        pytest.param([VOICE, -VOICE], 0, id="opposite"),
        pytest.param([VOICE + NOISE[0], NOISE[1] - 1.05 * VOICE], 0, id="opposite, noisy"),
        pytest.param([0.3 * VOICE, -VOICE], 1, id="opposite, the left one faint"),
        pytest.param([VOICE, -0.5 * VOICE], 0, id="opposite, the right one faint"),
        pytest.param([*[DEAD] * 5, VOICE, DEAD, DEAD], 5, id="one voice in eight"),
        pytest.param([*NOISE[:2], VOICE, *NOISE[2:]], 2, id="one voice, others noisy"),
        pytest.param([VOICE + NOISE[0], VOICE + NOISE[1]], None, id="stereo"),
        pytest.param([VOICE, DEAD], None, id="dead on the right"),
        pytest.param([VOICE, DEAD + np.float32(0.4)], None, id="an offset is no sound"),
        pytest.param([DEAD, DEAD], None, id="silent"),
    ],
)
def test_channels(channels: list[np.ndarray], taken: int | None, tmp_path: Path) -> None:
    path = record(tmp_path / "a.wav", *channels, subtype="FLOAT")
    expected = np.mean(channels, axis=0) if taken is None else channels[taken]
    np.testing.assert_allclose(read_both_ways(path), expected, atol=1e-6)
    recording = read_audio(path)
    assert (recording.channels, recording.channel) == (len(channels), taken)


def test_the_channel_is_chosen_from_the_whole_recording(tmp_path: Path) -> None:
    """It begins in phase, for longer than anything that is read at once."""
    quiet = np.tile(0.1 * VOICE, 8)
    left, right = np.tile(VOICE, 8), np.tile(-VOICE, 8)
    path = record(tmp_path / "a.wav", np.r_[quiet, left], np.r_[quiet, right], subtype="FLOAT")
    np.testing.assert_allclose(read_both_ways(path), np.r_[quiet, left], atol=1e-6)


def test_a_channel_that_is_read_alone_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "voice", make_base(tmp_path / "base"))
    record(bench.source / "clip_1.wav", VOICE, -VOICE)
    checked = CliRunner().invoke(app, ["check", str(bench.source)])
    assert checked.exit_code == 0
    assert "1 clip is read from one channel alone (clip_1.wav)" in " ".join(checked.output.split())
    said: list[str] = []
    prepare_voice(bench.source, bench.output, bench.base, bench.config, notice=said.append)
    assert said == [
        "Only one channel is read of 1 clip (clip_1.wav), since the average of all would lose most "
        "of the voice."
    ]
    assert (bench.output / "5-wav32k" / "clip_1.wav").is_file()
    said.clear()
    (piece,) = slice_recordings(
        [bench.source / "clip_1.wav"], tmp_path / "slices", notice=said.append
    )
    assert said == [
        f"{bench.source / 'clip_1.wav'}: only channel 1 of 2 is read, since their average would "
        "lose most of the voice"
    ]
    assert np.abs(read_audio(tmp_path / "slices" / piece.name).wav).max() > 0.3


def test_a_flac_of_unknown_length(tmp_path: Path) -> None:
    """As ffmpeg writes it to a pipe."""
    path = record(tmp_path / "a.flac", VOICE)
    expected = read_audio(path).wav
    tell_frames(path, 0)
    np.testing.assert_array_equal(read_both_ways(path), expected)
    assert read_seconds(path) == len(VOICE) / RATE
    (piece,) = slice_recordings([path], tmp_path / "slices")
    assert piece.span.end == len(VOICE)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.wav", {"subtype": "GSM610"}),
        ("a.aiff", {"subtype": "GSM610"}),
        ("a.aiff", {"subtype": "DWVW_16"}),
        ("a.wav", {"subtype": "IMA_ADPCM"}),
        ("a.au", {"subtype": "G721_32"}),
    ],
)
def test_forms_in_which_nothing_can_be_sought(
    name: str, form: dict[str, str], tmp_path: Path
) -> None:
    path = record(tmp_path / name, VOICE[:-7], **form)
    read = read_both_ways(path)
    assert 0 <= len(read) - (len(VOICE) - 7) < 2048  # these have blocks, and fill the last
    assert np.corrcoef(read[: len(VOICE) - 7], VOICE[:-7])[0, 1] > 0.9
    assert read_seconds(path) == len(read) / RATE


def long_flac(path: Path) -> Path:
    """Silence of ten minutes and a second, in a few kilobytes."""
    return record(path, np.zeros(601 * 16000, np.int16), rate=16000)


def test_a_clip_of_hours_is_refused_and_a_recording_is_not(tmp_path: Path) -> None:
    path = long_flac(tmp_path / "a.flac")
    samples = 601 * 16000
    for read in (read_audio, read_seconds, lambda path: read_speech(path, RATE)):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}: is more than 10 minutes long; cut it into clips of 3 to 10 s"
        )
    assert sum(map(len, stream_recording(path, 16000))) == samples
    tell_frames(path, 0)
    for read in (read_audio, read_seconds):
        with pytest.raises(DataError, match="is more than 10 minutes long"):
            read(path)
    assert sum(map(len, stream_recording(path, 16000))) == samples


def test_one_bad_clip_does_not_end_the_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "voice", make_base(tmp_path / "base"))
    bad = {
        "lies.flac": tell_frames(record(tmp_path / "lies.flac", VOICE), (1 << 36) - 1),
        "long.flac": long_flac(tmp_path / "long.flac"),
        "phone.wav": record(tmp_path / "phone.wav", VOICE, rate=8000, subtype="GSM610"),
        "cut.flac": record(tmp_path / "cut.flac", VOICE),
    }
    os.truncate(bad["cut.flac"], bad["cut.flac"].stat().st_size // 2)
    with (bench.source / "transcripts.tsv").open("a") as file:
        file.writelines(f"{name}\tone more\n" for name in bad)
    for name, path in bad.items():
        path.rename(bench.source / name)
    dropped = {clip.name: clip.reason for clip in bench.make(held_out=0)}
    words = {
        "lies.flac": "is more than 10 minutes long; cut it",
        "long.flac": "is more than 10 minutes long; cut it",
        "phone.wav": "was recorded at 8000 Hz, which lacks",
        "cut.flac": "is damaged; export it again or take it out",
    }
    assert dropped.keys() == words.keys()
    for name, expected in words.items():
        assert dropped[name].startswith(f"{bench.source / name}: {expected}")
    checked = CliRunner().invoke(app, ["check", str(bench.source), "--json"])
    assert checked.exit_code == 0
    for name in words:
        assert dropped[name] in checked.output


def wav_rate(rate: int) -> Callable[[Path], Path]:
    return lambda path: patch(path, 24, rate.to_bytes(4, "little"))


def sample(value: float) -> Callable[[Path], Path]:
    return lambda path: patch(path, path.stat().st_size // 8 * 4, np.float32(value).tobytes())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wav_rate(0), None),  # libsndfile's own judgement
        (wav_rate(1), "states a rate of 1 Hz, which no recorder has; export it again"),
        (wav_rate(2**31 - 1), "states a rate of 2147483647 Hz, which no recorder has"),
        (wav_rate(2**31), None),
        (lambda path: patch(path, 22, bytes(2)), None),  # no channels
        (lambda path: patch(path, 22, b"\xff\xff"), None),  # 65535 of them
        (sample(np.nan), "holds samples that are not numbers"),
        (sample(np.inf), "holds samples that are not numbers"),
        (sample(1e30), "has a peak of 1e+30 where 1.0 is full scale"),
    ],
)
def test_absurd_headers_and_values(
    spoil: Callable[[Path], Path], words: str | None, tmp_path: Path
) -> None:
    path = spoil(record(tmp_path / "a.wav", VOICE, subtype="FLOAT"))
    for name in ("whole", "streamed"):
        with pytest.raises(DataError) as caught:
            READERS[name](path)
        assert str(caught.value).startswith(f"{path}: {words or ''}")


def test_phone_audio_is_no_voice_in_one_piece_nor_in_slices(tmp_path: Path) -> None:
    path = record(tmp_path / "a.wav", VOICE, rate=8000)
    for read in (lambda: read_speech(path, RATE), lambda: slice_recordings([path], tmp_path / "o")):
        with pytest.raises(DataError, match="was recorded at 8000 Hz, which lacks the upper half"):
            read()


@pytest.mark.parametrize("channels", [1, 40])
def test_many_channels_and_the_highest_rate(channels: int, tmp_path: Path) -> None:
    path = record(tmp_path / "a.wav", *[VOICE] * channels, rate=655_350)
    assert read_seconds(path) == len(VOICE) / 655_350
    read, streamed = read_speech(path, RATE), np.concatenate(list(stream_recording(path, RATE)))
    assert abs(len(read) - len(VOICE) * RATE / 655_350) <= 1
    assert abs(len(read) - len(streamed)) <= 1


@pytest.mark.parametrize("name", ["a.raw", "a.wav", b"\xff\xfe.wav"])
def test_a_name_says_nothing_of_what_is_inside(name: str | bytes, tmp_path: Path) -> None:
    """Nor has it to be UTF-8; `.raw` would have soundfile ask for a format."""
    path = tmp_path / os.fsdecode(name)
    try:
        path.write_text("no sound")
    except OSError:
        pytest.skip("this disk takes no such name")
    with pytest.raises(DataError, match="is not audio that can be read"):
        read_audio(path)
    if path.suffix == ".wav":
        record(tmp_path / "b.wav", VOICE).rename(path)
        assert len(read_both_ways(path)) == len(VOICE)


def test_a_recording_too_large_for_the_memory(tmp_path: Path, monkeypatch: Any) -> None:
    path = record(tmp_path / "a.wav", VOICE)

    def refuse(*given: Any, **named: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(np, "concatenate", refuse)
    with pytest.raises(DataError, match=r"a\.wav: does not fit into memory; cut it into shorter"):
        read_audio(path)
