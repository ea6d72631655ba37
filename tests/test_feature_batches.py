"""Clips that the content encoder hears together: each gets the features that it has alone."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.base import Base, find_base, load_content_encoder
from mlx_vits.checkpoints.state_dict import load_state
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.errors import DataError
from mlx_vits.models.hubert import HubertConfig, HubertModel
from mlx_vits.preprocessing import features, making
from mlx_vits.preprocessing.features import (
    ENCODER_RATE,
    EncoderClip,
    batch_by_length,
    batch_features,
)
from tests.support.bench import Bench, content, take, watch_encoder
from tests.support.goldens import tensors, values
from tests.support.tiny import hum, make_base

# Of the largest value. Matrices of other shapes round by 1e-6; one frame too many in the statistics
# of the first norm changes 4e-5, and one anywhere else far more.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Base:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def bench(base: Base, tmp_path: Path) -> Bench:
    return Bench(tmp_path, base, 5)


def content_encoder(name: str, base: Base) -> HubertModel:
    if name == "golden":
        encoder = HubertModel(HubertConfig.from_dict(values("hubert", "config.json")))
        load_state(encoder, tensors("hubert", "weights.safetensors"), source="hubert")
        return encoder
    folder = (base if name == "tiny" else find_base("demo")).content_encoder
    assert folder is not None
    return load_content_encoder(folder)


def clips_of(*lengths: int) -> list[EncoderClip]:
    """Loud and quiet, with an offset, so that silence behind a clip is nothing like it."""
    random = np.random.default_rng(0)
    clips = []
    for index, length in enumerate(lengths):
        wav = hum(length / ENCODER_RATE + 0.01, 100 + 30 * index, ENCODER_RATE)[:length]
        wav = wav * 10.0 ** random.uniform(-1, 3) + random.uniform(0.1, 1)
        clips.append(EncoderClip(f"clip {index}", wav.astype(np.float32)))
    return clips


def alone(encoder: HubertModel, clip: EncoderClip) -> np.ndarray:
    return np.array(encoder(mx.array(clip.audio)[None])[0])


def assert_same(found: Any, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


@pytest.mark.parametrize("name", ["tiny", "golden", "demo"])
def test_a_batch_equals_its_clips_one_by_one(name: str, base: Base) -> None:
    """A single frame and one sample more or less than a frame among them."""
    encoder = content_encoder(name, base)
    clips = clips_of(30000, 400, 719, 720, 721, 16000, 30000, 29999, 9000)
    for found, clip in zip(batch_features(encoder, clips), clips, strict=True):
        assert_same(found, alone(encoder, clip))
    for length in (400, 719, 720, 30000):
        assert encoder.config.frames(length) == (length - 400) // 320 + 1


def test_a_clip_without_features_leaves_the_others_theirs(base: Base) -> None:
    encoder = content_encoder("tiny", base)
    clips = clips_of(9000, 12000, 399, 15000, 1)
    clips[1].audio[5000] = np.nan
    found = batch_features(encoder, clips)
    for index, words in (
        (1, "clip 1: the content encoder gives values that are not numbers; check that its files"),
        (2, "clip 2: is too short; 0.03 s are needed at least"),
        (4, "clip 4: is too short; 0.03 s are needed at least"),
    ):
        assert isinstance(found[index], DataError)
        assert str(found[index]).startswith(words)
    for index in (0, 3):
        assert_same(found[index], alone(encoder, clips[index]))
    assert all(isinstance(fault, DataError) for fault in batch_features(encoder, clips[1:3]))


def test_batches_are_bounded(monkeypatch: Any) -> None:
    """Padding included; one that is longer is alone; none has room for the next."""
    monkeypatch.setattr(features, "BATCH_SAMPLES", 100)
    random = np.random.default_rng(0)
    for _ in range(200):
        lengths = random.integers(1, 130, random.integers(0, 20)).tolist()
        if random.random() < 0.7:
            lengths.sort()
        batches = list(batch_by_length(lengths, lambda length: length))
        assert [length for batch in batches for length in batch] == lengths
        assert all(len(batch) == 1 or len(batch) * max(batch) <= 100 for batch in batches)
        for batch, after in pairwise(batches):
            assert (len(batch) + 1) * max(*batch, after[0]) > 100


def features_in(folder: Path) -> dict[str, np.ndarray]:
    paths = folder.rglob("4-cnhubert/*.pt")
    return {path.name.removesuffix(".pt"): read_torch_archive(path)[0] for path in paths}


def assert_same_folder(found: Path, expected: Path) -> None:
    theirs = features_in(expected)
    ours = features_in(found)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert_same(array, theirs[name])
    rest = [
        {name: data for name, data in content(folder).items() if "4-cnhubert" not in name}
        for folder in (found, expected)
    ]
    assert rest[0] == rest[1]


@pytest.fixture
def alone_bench(base: Base, tmp_path_factory: Any, monkeypatch: Any) -> Bench:
    """The same voice, each of its clips heard by itself."""
    made = Bench(tmp_path_factory.mktemp("alone"), base, 5)
    with monkeypatch.context() as patch:
        patch.setattr(features, "BATCH_SAMPLES", 1)
        made.make()
    return made


class Heard:
    """What the encoder was given, `(B, N)` of each batch."""

    def __init__(self, monkeypatch: Any):
        self.shapes: list[tuple[int, ...]] = []
        call = HubertModel.__call__

        def watched(encoder: HubertModel, wav: mx.array, lengths: Any = None) -> mx.array:
            self.shapes.append(wav.shape)
            return call(encoder, wav, lengths)

        monkeypatch.setattr(HubertModel, "__call__", watched)


def test_a_voice_is_heard_in_batches(bench: Bench, alone_bench: Bench, monkeypatch: Any) -> None:
    """Of 1.2, 1.4, 1.6 and 1.8 s, and one held out; each is reported when it is on the disk."""
    heard = Heard(monkeypatch)
    monkeypatch.setattr(features, "BATCH_SAMPLES", round(3.3 * ENCODER_RATE))
    said: list[tuple[int, int, str]] = []
    batches = []

    def progress(done: int, count: int, name: str) -> None:
        said.append((done, count, name))
        batches.append(len(heard.shapes))
        part = bench.partial / "held_out" if name == "clip_4.wav" else bench.partial
        assert (part / "5-wav32k" / name).is_file()
        journal = (bench.partial / "journal.jsonl").read_text().splitlines()
        assert name in json.loads(journal[-1])["files"][0]

    bench.make(progress=progress)
    assert said == [(i + 1, 5, f"clip_{i}.wav") for i in range(5)]
    assert batches == [1, 1, 2, 3, 4]
    seconds = [(clips, round(samples / ENCODER_RATE, 1)) for clips, samples in heard.shapes]
    assert seconds == [(2, 1.4), (1, 1.6), (1, 1.8), (1, 2.0)]
    assert_same_folder(bench.output, alone_bench.output)


@pytest.mark.parametrize(("stop", "again"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (4, [4])])
def test_an_interrupted_batch_goes_on(
    stop: int, again: list[int], bench: Bench, alone_bench: Bench, monkeypatch: Any
) -> None:
    """What was written before is not heard again, the rest of the batch is."""
    names = watch_encoder(monkeypatch)
    bench.stop_after(stop)
    assert names == [f"clip_{i}.wav" for i in range(4)]
    names.clear()
    bench.make()
    assert names == [f"clip_{i}.wav" for i in again]
    assert_same_folder(bench.output, alone_bench.output)


def test_the_order_of_the_transcripts_stays(bench: Bench) -> None:
    order = ["clip_3", "clip_0", "clip_4", "clip_1"]
    (bench.source / "clip_2.wav").unlink()
    bench.tell(**dict.fromkeys(order, "in being comparatively modern"))
    bench.make(held_out=0)
    lines = (bench.output / "2-name2text.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [f"{name}.wav" for name in order]


def test_a_clip_that_gives_no_numbers_is_left_out_alone(
    bench: Bench, alone_bench: Bench, monkeypatch: Any
) -> None:
    """Also where the same recording has two names: each is named."""
    hear = making.encoder_input

    def spoil(wav: np.ndarray, rate: int, name: str) -> np.ndarray:
        heard = hear(wav, rate, name)
        if len(wav) == len(take(1)):
            heard[3000] = np.nan
        return heard

    monkeypatch.setattr(making, "encoder_input", spoil)
    bench.write("again.wav", take(1))
    bench.write("twin.wav", take(0))
    names = watch_encoder(monkeypatch)
    dropped = bench.make(held_out=1)
    assert [clip.name for clip in dropped] == ["clip_1.wav", "again.wav"]
    for clip in dropped:
        assert clip.reason.startswith(f"{bench.source / clip.name}: the content encoder gives")
    # The twin is the one held out, and its recording is heard once.
    assert names == [f"clip_{i}.wav" for i in range(5)] + ["again.wav"]
    ours, theirs = features_in(bench.output), features_in(alone_bench.output)
    assert sorted(ours) == ["clip_0.wav", "clip_2.wav", "clip_3.wav", "clip_4.wav", "twin.wav"]
    for name, array in ours.items():
        assert_same(array, theirs["clip_0.wav" if name == "twin.wav" else name])
    with pytest.raises(DataError, match=r"clip_1\.wav: the content encoder gives"):
        bench.make(held_out=1, strict=True)
