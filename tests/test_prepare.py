"""From clips and transcripts to a prepared folder, in upstream's form."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.levels import mix_level, to_int16
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.preprocessing.prepared import Manifest, check_fits, read_text_lines
from mlx_vits.preprocessing.sources import read_voice_source
from mlx_vits.text import phonemes_to_ids
from mlx_vits.training.batches import PreparedVoice
from tests.support.tiny import RATE, hum, make_base, make_voice, tiny_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Any:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def prepared(base: Any, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("voice")
    source = make_voice(folder / "clips")
    return prepare_voice(source, folder / "prepared", base, tiny_config())


def test_level_is_half_common_peak_and_half_the_clips_own() -> None:
    wav = np.array([0.1, -0.4, 0.2], dtype=np.float32)
    expected = wav / 0.4 * 0.475 + 0.5 * wav
    np.testing.assert_allclose(mix_level(wav, "x"), expected, rtol=1e-6)
    assert to_int16(np.array([0.99999, -1.0, 1.7])).tolist() == [32767, -32768, 32767]
    assert to_int16(np.array([0.5 / 32768, -0.5 / 32768])).tolist() == [0, 0]  # truncated
    for wav, words in ((np.zeros(9), "is silent"), (np.full(9, 2.3), "peak of 2.3")):
        with pytest.raises(DataError, match=words):
            mix_level(wav, "x")


def test_the_folder_has_upstreams_names_and_formats(prepared: Path) -> None:
    names = [f"clip_{i}.wav" for i in range(4)]
    lines = (prepared / "2-name2text.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == names
    for line in lines:
        name, phonemes, word2ph, text = line.split("\t")
        assert phonemes_to_ids(phonemes.split(" "), "v2")
        assert ast.literal_eval(word2ph) is None
        assert text
        wav = prepared / "5-wav32k" / name
        info = soundfile.info(wav)
        assert (info.samplerate, info.channels, info.subtype) == (32000, 1, "PCM_16")
        assert wav.stat().st_size == 44 + 2 * info.frames
        tensor = read_torch_archive(prepared / "4-cnhubert" / f"{name}.pt")
        assert tensor.dtype == np.float32
        assert tensor.shape[:2] == (1, 16)
        assert info.frames // 640 - tensor.shape[2] in (0, 1)


def test_the_last_clips_are_held_out(prepared: Path) -> None:
    held = read_text_lines(prepared / "held_out" / "2-name2text.txt")
    assert [line.name for line in held] == ["clip_4.wav"]
    assert not (prepared / "5-wav32k" / "clip_4.wav").exists()
    voice = PreparedVoice(prepared, tiny_config())
    assert [item.name for item in voice.items] == [f"clip_{i}.wav" for i in range(4)]


def test_the_manifest_says_how_it_was_made(prepared: Path, base: Any) -> None:
    manifest = Manifest.read(prepared)
    assert manifest is not None
    assert (manifest.ssl_dim, manifest.version, manifest.language) == (16, "v2", "en")
    assert [clip.held_out for clip in manifest.sources] == [False] * 4 + [True]
    assert len(manifest.content_encoder_sha256) == 64
    check_fits(prepared, tiny_config(), manifest.content_encoder_sha256, base.name)


def test_a_folder_of_another_base_says_to_prepare_again(prepared: Path) -> None:
    with pytest.raises(DataError, match=r"16 wide, the base other needs 24; prepare the voice"):
        check_fits(prepared, tiny_config(ssl_dim=24), None, "other")
    with pytest.raises(DataError, match="another; prepare the voice again"):
        check_fits(prepared, tiny_config(), "0" * 64, "other")


def test_preparing_again_keeps_what_fits_and_replaces_what_does_not(
    base: Any, tmp_path: Path
) -> None:
    source = make_voice(tmp_path / "clips", clips=2)
    output = prepare_voice(source, tmp_path / "prepared", base, tiny_config())
    stamp = (output / "2-name2text.txt").stat().st_mtime_ns
    prepare_voice(source, output, base, tiny_config())
    assert (output / "2-name2text.txt").stat().st_mtime_ns == stamp
    (source / "transcripts.tsv").write_text("clip_0.wav\tone\nclip_1.wav\tanother text\n")
    prepare_voice(source, output, base, tiny_config())
    assert "another text" in (output / "2-name2text.txt").read_text()


def test_nothing_that_is_not_ours_is_replaced(base: Any, tmp_path: Path) -> None:
    source = make_voice(tmp_path / "clips", clips=2)
    (tmp_path / "docs").mkdir()
    thesis = tmp_path / "docs" / "thesis.txt"
    thesis.write_text("precious")
    for output, words in (
        (tmp_path / "docs", "holds something else"),
        (thesis, "is a file"),
        (source, "same place as the clips"),
        (source / "prepared", "same place as the clips"),
        (tmp_path, "same place as the clips"),
    ):
        with pytest.raises(DataError, match=words):
            prepare_voice(source, output, base, tiny_config())
    assert thesis.read_text() == "precious"
    assert len(list(source.iterdir())) == 3


def _write(folder: Path, name: str, wav: np.ndarray, rate: int = RATE) -> None:
    soundfile.write(folder / name, wav, rate)


def _faults(folder: Path) -> list[tuple[str, str]]:
    """Bad voices, each with words of the sentence it gets."""
    good = "clip_0.wav\tone two three\n"

    def voice(name: str, transcripts: str | None = good, clip: bool = True) -> Path:
        path = folder / name
        path.mkdir()
        if clip:
            _write(path, "clip_0.wav", hum(1.2))
        if transcripts is not None:
            (path / "transcripts.tsv").write_text(transcripts, encoding="utf-8")
        return path

    voice("empty", None, clip=False)
    voice("untold", None)
    voice("missing", good + "clip_1.wav\tfour\n")
    _write(voice("extra"), "clip_1.wav", hum(1.2))
    voice("columns", "clip_0.wav one two three\n")
    voice("silent text", "clip_0.wav\t\n")
    voice("twice", good + good)
    voice("outside", "../clip_0.wav\tone\n")
    (voice("latin") / "transcripts.tsv").write_bytes(b"clip_0.wav\tcaf\xe9\n")
    (voice("no sound") / "clip_0.wav").write_text("not audio")
    _write(voice("short"), "clip_0.wav", hum(0.2))
    _write(voice("long"), "clip_0.wav", hum(39.0))
    _write(voice("silence"), "clip_0.wav", np.zeros(RATE * 2))
    _write(voice("telephone"), "clip_0.wav", np.stack([hum(2, rate=8000)] * 2, axis=1), 8000)
    voice("signs", "clip_0.wav\t☃\n")
    _write(voice("twins", good + "clip_0.flac\ttwo\n"), "clip_0.flac", hum(1.2))
    return [
        ("nowhere", "no such folder"),
        ("empty", "empty of recordings"),
        ("untold", "no transcripts.tsv"),
        ("missing", "lists clip_1.wav, which is not in the folder"),
        ("extra", r"clip_1.wav: has no line in transcripts.tsv"),
        ("columns", "line 1 is not"),
        ("silent text", "line 1 gives no text for clip_0.wav"),
        ("twice", "line 2 lists clip_0.wav a second time"),
        ("outside", "line 1 does not name a file of the folder"),
        ("latin", "UTF-8"),
        ("no sound", "clip_0.wav: is not audio"),
        ("short", "clip_0.wav: is 0.20 s long"),
        ("long", "clip_0.wav: is 39 s long"),
        ("silence", "clip_0.wav: is silent"),
        ("telephone", "clip_0.wav: was recorded at 8000 Hz"),
        ("signs", "clip_0.wav"),
        ("twins", "differ in ending only"),
    ]


@pytest.mark.machine
def test_bad_voices_get_one_sentence_and_leave_nothing(
    base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg
    for name, words in _faults(tmp_path):
        output = tmp_path / "prepared"
        with pytest.raises(DataError, match=words) as caught:
            prepare_voice(tmp_path / name, output, base, tiny_config())
        assert "\n" not in str(caught.value)
        assert not output.exists()
        assert not list(tmp_path.glob("*.partial")), name


def test_clips_to_listen_to_can_be_named(tmp_path: Path) -> None:
    source = make_voice(tmp_path / "clips")
    (source / "held_out.txt").write_text("clip_1.wav\nclip_3.wav\n")
    split = read_voice_source(source)
    assert [clip.name for clip in split.held_out] == ["clip_1.wav", "clip_3.wav"]
    assert [clip.name for clip in read_voice_source(source, 0).held_out] == []
    (source / "held_out.txt").write_text("clip_9.wav\n")
    with pytest.raises(
        DataError, match=r"held_out\.txt: names clip_9\.wav.*; add one, or take the line"
    ):
        read_voice_source(source)
    for count in (5, 7):
        with pytest.raises(DataError, match="no clip is left"):
            read_voice_source(source, count)
    (source / "._clip_0.wav").write_bytes(b"what macOS leaves on other disks")
    assert len(read_voice_source(source, 0).training) == 5


def test_few_clips_are_all_trained_on(tmp_path: Path) -> None:
    assert read_voice_source(make_voice(tmp_path / "three", clips=3)).held_out == []


def test_signs_that_are_not_read_are_counted_and_shown(base: Any, tmp_path: Path) -> None:
    source = make_voice(tmp_path / "clips", clips=2)
    lines = "clip_0.wav\tone \N{SNOWMAN} two \N{SNOWMAN}\nclip_1.wav\tthree \u4e8c\n"
    (source / "transcripts.tsv").write_text(lines, encoding="utf-8")
    said: list[str] = []
    prepare_voice(source, tmp_path / "prepared", base, tiny_config(), notice=said.append)
    assert len(said) == 1
    assert said[0].startswith("3 signs in the transcripts are not read aloud: \N{SNOWMAN} (2), ")
