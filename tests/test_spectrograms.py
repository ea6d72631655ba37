"""Spectrograms kept in files: the same bits, never those of another recording, never in memory."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.audio.spectrogram import spectrogram
from mlx_vits.preprocessing import spectrograms
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.prepared import fingerprint, write_features
from mlx_vits.preprocessing.spectrograms import SpectrogramStore, compute_spectrogram
from mlx_vits.training.batches import PreparedVoice
from tests.support.tiny import RATE, hum, make_base, make_voice, tiny_config

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def original(tmp_path_factory: Any) -> Path:
    root = tmp_path_factory.mktemp("spectrograms")
    options = PrepareOptions(held_out=0)
    base = make_base(root / "base")
    return prepare_voice(make_voice(root / "clips"), root / "prepared", base, CONFIG, options)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "prepared"))


class Computed:
    """Counts the spectrograms that are computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count = 0

        def counting(*args: Any) -> np.ndarray:
            self.count += 1
            return compute_spectrogram(*args)

        monkeypatch.setattr(spectrograms, "compute_spectrogram", counting)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    return Computed(monkeypatch)


def specs(folder: Path) -> dict[str, np.ndarray]:
    voice = PreparedVoice(folder, CONFIG)
    return {item.name: voice.read(item).spec for item in voice.items}


def expected(folder: Path, name: str) -> np.ndarray:
    return compute_spectrogram(read_audio(folder / "5-wav32k" / name).wav, CONFIG.data)


def test_what_is_read_is_what_would_be_computed(folder: Path, computed: Computed) -> None:
    """Bit for bit, the first time and from the file, which an older prepared folder lacks."""
    before = fingerprint(folder)
    first, second = specs(folder), specs(folder)
    assert computed.count == 5
    for name, spec in first.items():
        assert np.array_equal(spec, expected(folder, name))
        assert np.array_equal(second[name], spec)
        assert isinstance(second[name], np.memmap)
    assert fingerprint(folder) == before  # a run of the same data goes on


def test_a_clip_is_computed_and_checked_once_in_a_run(
    folder: Path, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = PreparedVoice(folder, CONFIG)
    voice.read(voice.items[0])
    with monkeypatch.context() as patch:
        patch.setattr(spectrograms, "_is_whole", lambda *args: pytest.fail("checked again"))
        voice.read(voice.items[0])
    assert computed.count == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_to_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4100))


def other_magic(path: Path) -> None:
    path.write_bytes(b"another spec 2\n\0" + path.read_bytes()[16:])


def of_another_clip(path: Path) -> None:
    shutil.copyfile(path.with_name("clip_1.wav.spec"), path)


@pytest.mark.parametrize(
    "harm", [cut, cut_to_header, empty, flip, lengthen, other_magic, of_another_clip]
)
@pytest.mark.parametrize("within_run", [False, True])
def test_a_file_that_is_not_what_it_should_be_is_made_again(
    harm: Callable[[Path], None], within_run: bool, folder: Path, computed: Computed
) -> None:
    voice = PreparedVoice(folder, CONFIG)
    for item in voice.items:
        voice.read(item)
    path = folder / "spectrograms" / "clip_0.wav.spec"
    whole = path.read_bytes()
    harm(path)
    os.utime(path, ns=(1, 1))  # however coarse the clock of the disk
    if not within_run:
        voice = PreparedVoice(folder, CONFIG)
    found = voice.read(voice.items[0]).spec
    assert np.array_equal(found, expected(folder, "clip_0.wav"))
    assert path.read_bytes() == whole
    assert computed.count == 6


def test_another_recording_of_the_same_length_is_noticed(folder: Path) -> None:
    """Also where it has the time stamp of the one before."""
    specs(folder)
    path = folder / "5-wav32k" / "clip_0.wav"
    stamp, samples = path.stat(), len(read_audio(path).wav)
    write_wav(path, hum(3, 333)[:samples], RATE)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    assert np.array_equal(specs(folder)["clip_0.wav"], expected(folder, "clip_0.wav"))


def test_another_window_is_noticed(folder: Path) -> None:
    path = folder / "5-wav32k" / "clip_0.wav"
    wav = read_audio(path).wav
    data = CONFIG.data
    for hop in (data.hop_length, data.hop_length // 2):
        changed = tiny_config().data.__class__(hop_length=hop)
        found = SpectrogramStore(folder, changed).read(path, wav)
        assert np.array_equal(found, compute_spectrogram(wav, changed))


def test_a_folder_that_cannot_be_written_to_costs_time_alone(
    folder: Path, computed: Computed
) -> None:
    (folder / "spectrograms").write_bytes(b"in the way")
    voice = PreparedVoice(folder, CONFIG)
    for item in voice.items * 2:
        assert np.array_equal(voice.read(item).spec, expected(folder, item.name))
    assert computed.count == 10


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_length_of_the_data(tmp_path: Path) -> None:
    """Sixteen minutes of clips, 200 MB of spectrograms, in the memory of a few clips."""
    count, seconds = 200, 5
    for part in ("5-wav32k", "4-cnhubert"):
        (tmp_path / part).mkdir()
    write_wav(tmp_path / "clip.wav", hum(seconds), RATE)
    write_features(tmp_path / "clip.pt", np.zeros((50 * seconds, 16), np.float32))
    lines = []
    for number in range(count):
        os.link(tmp_path / "clip.wav", tmp_path / "5-wav32k" / f"{number}.wav")
        os.link(tmp_path / "clip.pt", tmp_path / "4-cnhubert" / f"{number}.wav.pt")
        lines.append(f"{number}.wav\tAH0\tNone\tuh\n")
    (tmp_path / "2-name2text.txt").write_text("".join(lines))
    voice = PreparedVoice(tmp_path, CONFIG)
    batches = voice.endless(4, 0, 1)
    for _ in range(5):
        next(batches)
    before = resident_bytes()
    for _ in range(2 * count // 4):
        next(batches)
    assert resident_bytes() - before < 40e6
    stored = sum(path.stat().st_size for path in (tmp_path / "spectrograms").iterdir())
    assert stored > 190e6


@pytest.mark.parametrize("samples", [32000, 31999, 1000])
def test_it_is_the_one_that_is_computed_elsewhere(samples: int) -> None:
    data = tiny_config().data
    wav = np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)
    ours, theirs = compute_spectrogram(wav, data), spectrogram(mx.array(wav)[None], data)[0]
    np.testing.assert_array_equal(ours, np.array(theirs))


def test_a_thread_leaves_the_device_of_all_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mx.stream` acts on every thread, so on the one that trains on a GPU as well."""

    def refuse(*_: Any) -> None:
        raise AssertionError("changes the default device of all threads")

    for name in ("stream", "set_default_device", "set_default_stream"):
        monkeypatch.setattr(mx, name, refuse)
    wav = np.zeros(32000, np.float32)
    assert compute_spectrogram(wav, tiny_config().data).shape[0] > 0
