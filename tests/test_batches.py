"""Which clips are trained on, in which batches, and how they are padded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.errors import DataError
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.prepared import write_features
from mlx_vits.training.batches import (
    Item,
    Padding,
    PreparedVoice,
    collate,
    epoch_batches,
    repeat_items,
)
from tests.support.tiny import make_base, make_voice, tiny_config

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    root = tmp_path_factory.mktemp("batches")
    base = make_base(root / "base")
    return prepare_voice(
        make_voice(root / "clips"), root / "prepared", base, CONFIG, PrepareOptions(held_out=0)
    )


def _items(count: int, frames: int = 200) -> list[Item]:
    return [Item(f"{index:03}", [1], frames) for index in range(count)]


@pytest.mark.parametrize(("count", "repeated"), [(99, 198), (60, 120), (34, 68), (30, 90), (9, 99)])
def test_few_clips_are_repeated_as_upstream_does(folder: Path, count: int, repeated: int) -> None:
    voice = PreparedVoice(folder, CONFIG)
    voice.items = _items(count)
    assert len(repeat_items(voice.items)) == repeated
    voice.items = _items(100)
    assert len(repeat_items(voice.items)) == 100


def test_every_clip_is_in_an_epoch_and_batches_are_full() -> None:
    items = _items(10) + [item._replace(name=f"long {item.name}") for item in _items(3, frames=350)]
    batches = epoch_batches(items, 4, seed=1, epoch=1)
    assert [len(batch) for batch in batches] == [4] * 4  # 10 fill three batches, 3 one
    assert {item.name for batch in batches for item in batch} == {item.name for item in items}
    for batch in batches:
        assert len({item.frames for item in batch}) == 1  # buckets are not mixed


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    items = _items(50)
    assert epoch_batches(items, 4, 1, 1) == epoch_batches(items, 4, 1, 1)
    assert epoch_batches(items, 4, 1, 1) != epoch_batches(items, 4, 1, 2)
    assert epoch_batches(items, 4, 1, 1) != epoch_batches(items, 4, 2, 1)


def test_batches_are_padded_and_aligned(folder: Path) -> None:
    voice = PreparedVoice(folder, CONFIG)
    utterances = [voice.read(item) for item in voice.items]
    for utterance in utterances:
        assert len(utterance.ssl) == len(utterance.spec) == len(utterance.wav) // 640
    batch = collate(utterances, CONFIG)
    lengths = np.array(batch.spec_lengths)
    assert list(lengths) == sorted(lengths, reverse=True)
    assert batch.spec.shape == (5, 128, 1025)  # 100 frames at most, to a multiple of 64
    assert batch.ssl.shape == (5, 128, 16)
    assert batch.wav.shape == (5, 128 * 640, 1)
    assert batch.text.shape[1] % 32 == 0
    for row, length in enumerate(lengths):
        assert not mx.any(batch.spec[row, length:]).item()
        assert mx.all(mx.any(batch.spec[row, :length] > 0, axis=-1)).item()
    assert collate(utterances[:1], CONFIG, Padding(200, 7)).spec.shape[1] == 200


def test_clips_are_kept_in_memory_as_far_as_they_fit(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "prepared"))
    plain, kept = PreparedVoice(copy, CONFIG), PreparedVoice(copy, CONFIG, keep_bytes=1 << 24)
    before = [plain.read(item) for item in plain.items]
    sizes = [one.wav.nbytes + one.ssl.nbytes + one.spec.nbytes for one in before]
    part = PreparedVoice(copy, CONFIG, keep_bytes=sum(sizes[:2]))
    for voice in (kept, part):
        for item in voice.items:
            voice.read(item)
    shutil.rmtree(copy / "4-cnhubert")
    for item, one in zip(kept.items, before, strict=True):
        assert all(map(np.array_equal, kept.read(item), one))
    part.read(part.items[1])
    with pytest.raises(DataError, match="clip_2"):
        part.read(part.items[2])


def test_a_whole_multiple_still_leaves_a_padded_frame(folder: Path) -> None:
    """Upstream always pads by one frame at least, which the style encoder's edge depends on."""
    voice = PreparedVoice(folder, CONFIG)
    utterance = voice.read(voice.items[0])
    exact = utterance._replace(spec=np.resize(utterance.spec, (64, 1025)), ssl=np.ones((64, 16)))
    assert collate([exact], CONFIG).spec.shape[1] == 128


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    voice = PreparedVoice(folder, tiny_config(ssl_dim=24))
    with pytest.raises(DataError, match="features 16 wide, the base needs 24"):
        voice.read(voice.items[0])
    (tmp_path / "2-name2text.txt").write_text("a.wav\tAH0\tNone\tuh\n")
    with pytest.raises(DataError, match=r"holds no clip to train on \(a\.wav has no features"):
        PreparedVoice(tmp_path, CONFIG)


def test_a_folder_of_upstreams_may_have_lines_without_a_clip(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "logs"))
    (copy / "4-cnhubert" / "clip_1.wav.pt").unlink()
    with pytest.raises(DataError, match=r"clip_1\.wav has no features; take it out"):
        PreparedVoice(copy, CONFIG)
    (copy / "mlx_vits.json").unlink()
    voice = PreparedVoice(copy, CONFIG)
    assert voice.dropped == ["clip_1.wav has no features"]
    assert len(voice.items) == 4


def test_features_of_another_length_are_named(folder: Path) -> None:
    voice = PreparedVoice(folder, CONFIG)
    item = voice.items[0]
    path = folder / "4-cnhubert" / f"{item.name}.pt"
    kept = path.read_bytes()
    try:
        write_features(path, np.zeros((20, 16), np.float32))
        with pytest.raises(DataError, match="has 20 frames where the recording has 60"):
            voice.read(item)
        path.write_bytes(kept[:100])
        with pytest.raises(DataError, match=r"clip_0\.wav\.pt.*prepare the voice again"):
            voice.read(item)
    finally:
        path.write_bytes(kept)
