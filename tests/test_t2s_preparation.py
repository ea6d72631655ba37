"""Semantic codes and BERT features are made for a prepared folder, once for each base and text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.base import find_base, load_generator
from mlx_vits.checkpoints.codebook import codebook_sha256
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.errors import DataError
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing.bert_features import chinese_clips, make_bert_features
from mlx_vits.preprocessing.codes import has_codes, make_codes, read_code_lines
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.prepared import (
    Manifest,
    SourceClip,
    TextLine,
    fingerprint,
    read_features,
    write_text_lines,
)
from mlx_vits.training.t2s_batches import T2SVoice
from mlx_vits.training.t2s_rows import NO_BERT
from tests.support.tiny import make_base, make_voice, tiny_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    """A prepared voice of three clips, with codes."""
    root = tmp_path_factory.mktemp("codes")
    base = make_base(root / "base")
    folder = prepare_voice(
        make_voice(root / "clips", clips=3),
        root / "prepared",
        base,
        tiny_config(),
        PrepareOptions(held_out=0),
    )
    make_codes(folder, _generator(root / "base"))
    return folder


def _generator(base: Path) -> SynthesizerTrn:
    return load_generator(find_base(str(base)).read_generator())


@pytest.fixture
def voice(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "prepared"))


@pytest.fixture(scope="module")
def generator(made: Path) -> SynthesizerTrn:
    return _generator(made.parent / "base")


@pytest.fixture(scope="module")
def other(made: Path) -> SynthesizerTrn:
    """Of another base, whose codebook differs."""
    make_base(made.parent / "other", seed=1)
    return _generator(made.parent / "other")


def _count_made(folder: Path, generator: SynthesizerTrn) -> int:
    names: list[str] = []
    make_codes(folder, generator, lambda done, count, name: names.append(name))
    return len(names)


def test_every_clip_has_a_code_for_two_frames_of_its_features(
    voice: Path, generator: SynthesizerTrn
) -> None:
    path = voice / "6-name2semantic.tsv"
    assert path.read_text().startswith("item_name\tsemantic_audio\nclip_0.wav\t")
    lines = read_code_lines(path)
    assert [line.name for line in lines] == ["clip_0.wav", "clip_1.wav", "clip_2.wav"]
    for line in lines:
        features = read_features(voice / "4-cnhubert" / f"{line.name}.pt", 16)
        assert len(line.codes) == len(features) // 2
        expected = generator.extract_latent(mx.array(features)[None])
        np.testing.assert_array_equal(line.codes, np.array(expected)[0])
    assert T2SVoice(voice, "v2", eos=32).items[0].codes == lines[0].codes


def test_codes_that_are_there_are_kept_and_those_of_another_base_made_again(
    voice: Path, generator: SynthesizerTrn, other: SynthesizerTrn
) -> None:
    before = (voice / "6-name2semantic.tsv").read_text()
    assert _count_made(voice, generator) == 0
    assert not has_codes(voice, codebook_sha256(other))
    assert _count_made(voice, other) == 3
    assert (voice / "6-name2semantic.tsv").read_text() != before
    assert _count_made(voice, generator) == 3
    assert (voice / "6-name2semantic.tsv").read_text() == before


@pytest.mark.parametrize("damage", ["codes", "record", "no record"])
def test_codes_whose_record_does_not_fit_are_made_again(
    voice: Path, generator: SynthesizerTrn, damage: str
) -> None:
    codes, record = voice / "6-name2semantic.tsv", voice / "6-name2semantic.json"
    before = codes.read_text()
    if damage == "codes":
        codes.write_text(before + "clip_9.wav\t1 2 3\n")
    elif damage == "record":
        record.write_text("{")
    else:
        record.unlink()
    assert _count_made(voice, generator) == 3
    assert codes.read_text() == before


def test_codes_that_gpt_sovits_made_are_kept(voice: Path, generator: SynthesizerTrn) -> None:
    for name in ("mlx_vits.json", "6-name2semantic.json"):
        (voice / name).unlink()
    (voice / "6-name2semantic.tsv").write_text("item_name\tsemantic_audio\nclip_0.wav\t1 2 3\n")
    assert _count_made(voice, generator) == 0


def test_a_run_of_the_other_stage_still_knows_its_data(
    voice: Path, generator: SynthesizerTrn
) -> None:
    for name in ("6-name2semantic.tsv", "6-name2semantic.json"):
        (voice / name).unlink()
    before = fingerprint(voice)
    make_codes(voice, generator)
    assert fingerprint(voice) == before


@pytest.mark.parametrize("frames", [None, 1])
def test_a_clip_without_features_is_named_and_nothing_written(
    voice: Path, other: SynthesizerTrn, frames: int | None
) -> None:
    before = (voice / "6-name2semantic.tsv").read_text()
    path = voice / "4-cnhubert" / "clip_1.wav.pt"
    path.unlink()
    if frames:
        write_torch_archive(path, np.zeros((1, 16, frames), np.float32))
    with pytest.raises(DataError, match=r"clip_1\.wav\.pt"):
        make_codes(voice, other)
    assert (voice / "6-name2semantic.tsv").read_text() == before


class _Reader:
    """Stands for BERT: a character's features are its number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> mx.array:
        self.texts.append(text)
        return mx.broadcast_to(mx.array([[float(ord(c))] for c in text]), (len(text), 1024))


@pytest.fixture
def chinese(tmp_path: Path) -> Path:
    """Two Chinese clips and an English one, with texts and codes alone."""
    lines = [
        TextLine("a.wav", ["n", "i3", "h", "ao3"], "你好"),
        TextLine("b.wav", ["h", "ao3", "."], "好."),
        TextLine("c.wav", ["B", "AA1", "SH", "."], "bosh."),
    ]
    write_text_lines(tmp_path / "2-name2text.txt", lines, [[2, 2], [2, 1], None])
    clips = [SourceClip(f"{name}.wav", "", 1.0, "", language="zh") for name in "ab"]
    clips.append(SourceClip("c.wav", "", 1.0, "", language="en"))
    Manifest("base", "", 16, "v2", "zh", tuple(clips)).write(tmp_path)
    (tmp_path / "6-name2semantic.tsv").write_text(
        "".join(f"{name}.wav\t{'5 ' * 20}\n" for name in "abc")
    )
    return tmp_path


def test_a_characters_features_are_those_of_its_phonemes(chinese: Path) -> None:
    make_bert_features(chinese, chinese_clips(chinese), _Reader())
    assert sorted(path.name for path in (chinese / "3-bert").iterdir()) == ["a.wav.pt", "b.wav.pt"]
    features = read_torch_archive(chinese / "3-bert" / "b.wav.pt")
    assert features.shape == (1024, 3)
    assert features.dtype == np.float32
    assert features[700].tolist() == [ord("好"), ord("好"), ord(".")]
    voice = T2SVoice(chinese, "v2")
    assert [item.has_bert for item in voice.items] == [True, True, False]
    assert voice.read(voice.items[0]).bert.shape == (4, 1024)  # type: ignore[union-attr]


def test_features_that_are_there_are_kept_unless_they_do_not_fit(chinese: Path) -> None:
    reader = _Reader()
    make_bert_features(chinese, {"a.wav", "b.wav"}, reader)
    write_torch_archive(chinese / "3-bert" / "a.wav.pt", np.zeros((1024, 7), np.float32))
    make_bert_features(chinese, {"a.wav", "b.wav"}, reader)
    assert reader.texts == ["你好", "好.", "你好"]
    assert read_torch_archive(chinese / "3-bert" / "a.wav.pt").shape == (1024, 4)


def test_chinese_is_not_trained_on_without_its_features(chinese: Path) -> None:
    voice = T2SVoice(chinese, "v2")
    assert [item.name for item in voice.items] == ["c.wav"]
    assert voice.left_out == [("a.wav", NO_BERT), ("b.wav", NO_BERT)]


def test_a_text_that_cannot_be_read_names_its_clip(chinese: Path) -> None:
    def refuse(text: str) -> mx.array:
        raise DataError(f"The sentence {text!r} is too long; split it.")

    with pytest.raises(DataError, match=r"2-name2text\.txt: a\.wav: The sentence"):
        make_bert_features(chinese, {"a.wav"}, refuse)
    with pytest.raises(DataError, match=r"c\.wav does not say which character"):
        make_bert_features(chinese, {"c.wav"}, _Reader())
