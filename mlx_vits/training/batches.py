"""Prepared voice, seed and epoch to batches.

Source: GPT-SoVITS `module/data_utils.py` (`TextAudioSpeakerLoader`, `TextAudioSpeakerCollate`,
`DistributedBucketSampler`). Axes: B batch, T spectrogram frames, S SSL frames, F bins, N samples,
L phonemes.

Two things differ from upstream, on purpose: the order depends on the seed alone (upstream's depends
on Python's string hashing), and lengths are padded further, to a few sizes, because every new shape
has to be traced and compiled again. The padding is masked like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.audio.files import read_audio
from mlx_vits.config import Config
from mlx_vits.errors import DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.features import align_features
from mlx_vits.preprocessing.spectrograms import SpectrogramStore
from mlx_vits.text import phonemes_to_ids
from mlx_vits.training.footprint import Clips
from mlx_vits.training.step import Batch

_BOUNDARIES = (layout.SHORTEST_FRAMES - 1, *range(300, layout.LONGEST_FRAMES + 1, 100))  # frames
_FEWEST_ITEMS = 100
_NO_VECTOR = np.zeros(0, dtype=np.float32)


class Utterance(NamedTuple):
    """One clip, ready to be batched.

    Attributes:
        ssl: `(T, ssl_dim)`, as long as `spec`.
        spec: `(T, F)`.
        wav: `(N,)`.
        text: `(L,)` int32.
        sv_emb: `(V,)`, V = 0 where the version takes no speaker vector.
    """

    ssl: np.ndarray
    spec: np.ndarray
    wav: np.ndarray
    text: np.ndarray
    sv_emb: np.ndarray = _NO_VECTOR


class Item(NamedTuple):
    """A clip of the prepared folder that has not been read yet.

    Attributes:
        frames: as the sampler counts them, from the size of the file.
    """

    name: str
    ids: list[int]
    frames: int


class PreparedVoice:
    """The training clips of a prepared folder, which stay on the disk.

    Args:
        folder: as `preprocessing.prepared` describes it.
        config: of the model.
        keep_bytes: how much of the clips may be kept in memory once read. Reading a clip of 5 s
            takes 3 ms: nothing for batches of 4, but more than a GPU's step of a small model for
            those of 32.

    Attributes:
        items: clips to train on, sorted by name.
        dropped: what is wrong with each clip that is left out, in a folder of GPT-SoVITS's.

    Raises:
        DataError: nothing in the folder can be trained on; the reason is named.
    """

    def __init__(self, folder: Path, config: Config, *, keep_bytes: int = 0):
        self.folder, self.config = folder, config
        self.dropped: list[str] = []
        self.items = _read_items(folder, config, self.dropped)
        self._spectrograms = SpectrogramStore(folder, config.data)
        self._kept: dict[str, Utterance] = {}
        self._room = keep_bytes

    def move(self, folder: Path) -> None:
        """Follow the prepared folder to where it was moved."""
        self.folder = folder
        self._spectrograms = SpectrogramStore(folder, self.config.data)

    def plan(self, batch_size: int, seed: int, epoch: int) -> list[list[Item]]:
        """The batches of one epoch, from 1, not yet read."""
        return epoch_batches(repeat_items(self.items), batch_size, seed, epoch)

    def largest_batch(self, batch_size: int) -> Clips:
        """The shape of the largest batch that may come."""
        return Clips(
            batch_size,
            _round_up(max(item.frames for item in self.items) + 1, Padding().frames),
            _round_up(max(len(item.ids) for item in self.items), Padding().phonemes),
        )

    def batches(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from the `start`-th on."""
        for items in self.plan(batch_size, seed, epoch)[start:]:
            yield collate([self.read(item) for item in items], self.config)

    def endless(
        self, batch_size: int, seed: int, epoch: int, start: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """The padded fields of batch after batch, epoch after epoch; for `Ahead`.

        Args:
            epoch: the first, from 1.
            start: batches of the first epoch that are left out.
        """
        for number in count(epoch):
            for items in self.plan(batch_size, seed, number)[start:]:
                yield pad_utterances([self.read(item) for item in items], self.config)
            start = 0

    def read(self, item: Item) -> Utterance:
        """Reads one clip.

        Raises:
            DataError: a file is damaged or does not fit the others; it is named.
        """
        kept = self._kept.get(item.name)
        if kept is not None:
            return kept
        utterance = self._read(item, self.folder / layout.WAV_FOLDER / item.name)
        size = utterance.wav.nbytes + utterance.ssl.nbytes + utterance.spec.nbytes
        if size <= self._room:
            self._room -= size
            # A copy: a mapped spectrogram holds its file open.
            self._kept[item.name] = utterance._replace(spec=np.array(utterance.spec))
        return utterance

    def _read(self, item: Item, path: Path) -> Utterance:
        data = self.config.data
        recording = read_audio(path)
        if recording.rate != data.sampling_rate:
            raise DataError(
                f"{path}: is at {recording.rate} Hz instead of {data.sampling_rate}; prepare the "
                "voice again"
            )
        spec = self._spectrograms.read(path, recording.wav)
        ssl_path = self.folder / layout.SSL_FOLDER / f"{item.name}.pt"
        ssl = layout.read_features(ssl_path, self.config.reduced_dims.ssl_dim)
        ssl = align_features(ssl, len(spec), str(ssl_path))
        vector = _NO_VECTOR
        if self.config.model.is_pro:
            dim = self.config.reduced_dims.sv_dim
            vector = layout.read_speaker_vector(layout.speaker_file(self.folder, item.name), dim)
        return Utterance(ssl, spec, recording.wav, np.array(item.ids, dtype=np.int32), vector)


def _read_items(folder: Path, config: Config, dropped: list[str]) -> list[Item]:
    lines = layout.read_text_lines(folder / layout.TEXT_FILE, dropped.append)
    items = []
    for line in lines:
        wav = folder / layout.WAV_FOLDER / line.name
        ssl = folder / layout.SSL_FOLDER / f"{line.name}.pt"
        if not wav.is_file() or not ssl.is_file():
            dropped.append(f"{line.name} has no {'recording' if ssl.is_file() else 'features'}")
            continue
        if config.model.is_pro and not layout.speaker_file(folder, line.name).is_file():
            dropped.append(f"{line.name} has no speaker vector in {layout.SPEAKER_FOLDER}")
            continue
        size = wav.stat().st_size
        seconds = size / config.data.sampling_rate / 2
        frames = size // (2 * config.data.hop_length)
        if not (0.6 < seconds < 54) or not (_BOUNDARIES[0] < frames <= _BOUNDARIES[-1]):
            dropped.append(f"{line.name} is {seconds:.2f} s long")
            continue
        # The header counts in upstream's lengths, but not in the spectrogram's.
        if (size - layout.WAV_HEADER_BYTES) // (2 * config.data.hop_length) < config.segment_frames:
            dropped.append(f"{line.name} is shorter than a segment of {config.train.segment_size}")
            continue
        try:
            ids = phonemes_to_ids(line.phonemes, config.version)
        except DataError as error:
            raise DataError(f"{folder / layout.TEXT_FILE}: {line.name}: {error}") from error
        items.append(Item(line.name, ids, frames))
    if not items:
        reason = f" ({dropped[0]})" if dropped else ""
        raise DataError(f"{folder}: holds no clip to train on{reason}; prepare the voice again")
    if dropped and (folder / layout.MANIFEST).is_file():
        # In a folder of ours all files belong together; GPT-SoVITS leaves lines of clips out.
        raise DataError(f"{folder}: {dropped[0]}; take it out and prepare the voice again")
    return sorted(items)


def repeat_items(items: list[Item]) -> list[Item]:
    """The items of one epoch: fewer than 100 are repeated toward that number."""
    return items * max(2, _FEWEST_ITEMS // len(items)) if len(items) < _FEWEST_ITEMS else items


def epoch_batches(
    items: list[Item],
    batch_size: int,
    seed: int,
    epoch: int,
    boundaries: Sequence[int] = _BOUNDARIES,
) -> list[list[Item]]:
    """The batches of one epoch, clips of similar length together.

    Each bucket of lengths is shuffled and filled up to whole batches by repeating its own order;
    then the batches are shuffled. A tiny bucket repeats its clips within a batch, as upstream's do.

    Args:
        epoch: from 1.
        boundaries: upper ends of the buckets, in frames.
    """
    random = np.random.default_rng([seed, epoch])
    buckets: dict[int, list[Item]] = {}
    for item in items:
        buckets.setdefault(int(np.searchsorted(boundaries, item.frames)), []).append(item)
    batches = []
    for _, bucket in sorted(buckets.items()):
        order = [bucket[index] for index in random.permutation(len(bucket))]
        missing = -len(order) % batch_size
        order += [order[index % len(order)] for index in range(missing)]
        batches += [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


class Padding(NamedTuple):
    """Padded lengths are multiples of these.

    Attributes:
        frames: even.
        phonemes: any.
    """

    frames: int = 64
    phonemes: int = 32


def collate(utterances: list[Utterance], config: Config, padding: Padding | None = None) -> Batch:
    """Pads clips to a batch, longest first."""
    fields = pad_utterances(utterances, config, padding)
    return Batch(**{name: mx.array(array) for name, array in fields.items()})


def pad_utterances(
    utterances: list[Utterance], config: Config, padding: Padding | None = None
) -> dict[str, np.ndarray]:
    """The fields of a `Batch`, not yet MLX's: what may be done in another thread."""
    frame_step, text_step = padding or Padding()
    ordered = sorted(utterances, key=lambda utterance: len(utterance.spec), reverse=True)
    frames = _round_up(len(ordered[0].spec) + 1, frame_step)
    phonemes = _round_up(max(len(utterance.text) for utterance in ordered), text_step)
    # Segments end before the last valid frame, so samples beyond the padded frames are not needed.
    samples = frames * config.data.hop_length

    def stack(arrays: list[np.ndarray], length: int) -> np.ndarray:
        out = np.zeros((len(arrays), length, *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for row, array in zip(out, arrays, strict=True):
            row[: min(len(array), length)] = array[:length]
        return out

    def lengths(arrays: list[np.ndarray]) -> np.ndarray:
        return np.array([len(array) for array in arrays], dtype=np.int32)

    specs = [utterance.spec for utterance in ordered]
    texts = [utterance.text for utterance in ordered]
    return {
        "ssl": stack([utterance.ssl for utterance in ordered], frames),
        "spec": stack(specs, frames),
        "spec_lengths": lengths(specs),
        "wav": stack([utterance.wav for utterance in ordered], samples)[..., None],
        "text": stack(texts, phonemes),
        "text_lengths": lengths(texts),
        "sv_emb": np.stack([utterance.sv_emb for utterance in ordered]),
    }


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
