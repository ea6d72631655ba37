"""What the base is trained on: windows of clips, cut on the host and finished on the device.

All clips lie in memory at all speeds, as int16. Axes: B windows, T spectrogram frames, L phonemes,
N samples of a window with what its first and last frame see beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.audio.spectrogram import _MAGNITUDE_FLOOR, _hann
from mlx_vits.config import DataSection
from mlx_vits.errors import UserError
from scripts.demo_base.channels import Equaliser, draw_equaliser, equalise
from scripts.demo_base.clips import HELD_OUT, TRAINED, UNSEEN, Clip, frames_at_speed, read_clip_list
from scripts.demo_base.codebook import nearest_entries
from scripts.demo_base.generator import FastBatch
from scripts.demo_base.layers import frames_of
from scripts.demo_base.settings import MELODY_SIDES, Settings
from scripts.demo_base.store import read_arrays, read_clips

_TAPS = 5  # codes that a mishearing of one reaches
_MARGIN = 9  # phonemes at most on either side of what is spoken
_EQUALISED, _DECIBELS = 0.6, 3.0
_LOW_PASSED, _LOW_PASS = 0.35, (5000.0, 15000.0)  # share, Hz
_FLOOR = (58.0, 75.0)  # dB, of a hiss where a low pass leaves nothing
_GAIN = (-0.35, 0.25)  # natural logarithm
_LOUDEST = 0.99


class Window(NamedTuple):
    """Where a window lies in a clip: frames of the clip at its speed, even `start`."""

    clip: int
    start: int
    frames: int


class Windows(NamedTuple):
    """A batch as it is made on the host.

    Attributes:
        wav: `(B, N)` int16.
        codes: `(B, T / 2)` int32; one past the last where there is none.
        mask: `(B, T, 1)`.
        text, text_mask: `(B, L)` int32 and `(B, L, 1)`.
        starts: `(B,)` int32, of the decoded segments.
        places: `(B, T)` int32, which of the phonemes a frame speaks; -1 where unknown or hidden.
        equaliser: of each window.
        gain: `(B,)`.
        hiss: `(B,)`, amplitude.
        misheard: `(B,)`, how far codes stray, in standard deviations of the codebook.
        styles: `(B,)`, how far the prior's style strays, in standard deviations of the batch's.
    """

    wav: np.ndarray
    codes: np.ndarray
    mask: np.ndarray
    text: np.ndarray
    text_mask: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    equaliser: Equaliser
    gain: np.ndarray
    hiss: np.ndarray
    misheard: np.ndarray
    styles: np.ndarray


class Reading(NamedTuple):
    """What of its text a window is given.

    Attributes:
        ids: phonemes.
        is_heard: of each, whether it is not hidden.
        places: for each frame which of them it speaks, -1 where unknown or hidden.
    """

    ids: np.ndarray
    is_heard: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Spoken:
    """A clip at one speed.

    Attributes:
        clip: what it is.
        speed: of it.
        wav: `(N,)` int16 with `reach` samples reflected at both ends.
        frames: of its spectrogram.
        codes: `(ceil(frames / 2),)`.
        labels, places: `(S,)` of the recording at speed 1; see `ctc.Alignment`.
    """

    clip: Clip
    speed: float
    wav: np.ndarray
    frames: int
    codes: np.ndarray
    labels: np.ndarray
    places: np.ndarray


class WindowSource:
    """Draws windows of the clips that are trained on."""

    def __init__(self, spoken: Sequence[Spoken], entries: np.ndarray, settings: Settings):
        train, speech = settings.train, settings.speech
        self.settings, self.spoken = settings, list(spoken)
        self.data: DataSection = settings.model.data
        self.reach = spectrogram_reach(self.data)
        # The last entry is no code at all.
        self.book = mx.array(np.concatenate([entries, np.zeros((1, entries.shape[1]))], axis=0))
        self.book = self.book.astype(mx.float32)
        self._spread = _spread(entries, settings)
        others = max(1, len(speech.speeds) - 1)
        segment = train.segment_size // self.data.hop_length
        shares = [
            speech.weights.get(s.clip.voice, 1.0)
            * (1.0 if s.speed == 1 else train.other_speeds_weight / others)
            * (s.clip.use == TRAINED and s.frames >= segment)
            for s in self.spoken
        ]
        if not any(shares):
            raise UserError(
                f"{settings.source}: no clip is as long as segment_size; make it smaller"
            )
        self.shares = np.array(shares) / np.sum(shares)
        self.held_out, self.unseen = (
            [
                number
                for number, s in enumerate(self.spoken)
                if s.clip.use == use and s.speed == 1 and s.frames >= train.shortest_window
            ]
            for use in (HELD_OUT, UNSEEN)
        )

    @property
    def hours(self) -> float:
        """Of what is trained on, at all speeds."""
        frames = sum(s.frames for s in self.spoken if s.clip.use == TRAINED)
        return frames * self.data.hop_length / self.data.sampling_rate / 3600

    def draw(self, random: np.random.Generator) -> Windows:
        """A batch to train on."""
        train, windows = self.settings.train, []
        for number in random.choice(len(self.spoken), train.batch_size, p=self.shares):
            total = self.spoken[number].frames
            wanted = int(random.integers(train.shortest_window, train.frames + 1))
            start = 2 * int(random.integers(0, max(0, total - wanted) // 2 + 1))
            windows.append(Window(int(number), start, min(wanted, total - start)))
        return self.cut(windows, random)

    def checked(self, numbers: Sequence[int]) -> Windows:
        """The first frames of such clips, undisturbed; always the same."""
        train = self.settings.train
        some = [numbers[i % len(numbers)] for i in range(train.batch_size)]
        frames = [min(train.frames, self.spoken[number].frames) for number in some]
        windows = [Window(number, 0, count) for number, count in zip(some, frames, strict=True)]
        return self.cut(windows, np.random.default_rng(self.settings.seed), plain=True)

    def cut(
        self, windows: Sequence[Window], random: np.random.Generator, plain: bool = False
    ) -> Windows:
        """Cuts windows.

        Args:
            plain: with their whole texts and nothing hidden, equalised or made louder.
        """
        train, hop = self.settings.train, self.data.hop_length
        count, frames, letters = len(windows), train.frames, train.phonemes
        wav = np.zeros((count, frames * hop + 2 * self.reach), np.int16)
        codes = np.full((count, frames // 2), len(self.book) - 1, np.int32)
        mask = np.zeros((count, frames, 1), np.float32)
        text, text_mask = np.zeros((count, letters), np.int32), np.zeros((count, letters, 1))
        starts, places = np.zeros(count, np.int32), np.full((count, frames), -1, np.int32)
        for row, (number, start, length) in enumerate(windows):
            spoken = self.spoken[number]
            end = (start + length) * hop + 2 * self.reach
            piece = spoken.wav[start * hop : end]
            wav[row, : len(piece)] = piece
            mask[row, :length] = 1
            own = spoken.codes[start // 2 : (start + length + 1) // 2]
            is_lost = random.random(len(own)) < (0 if plain else train.lost_codes)
            codes[row, : len(own)] = np.where(is_lost, len(self.book) - 1, own)
            starts[row] = random.integers(0, length - train.segment_size // hop + 1)
            read = self._read(spoken, start, length, random, plain)
            text[row, : len(read.ids)] = read.ids
            text_mask[row, : len(read.ids), 0] = read.is_heard
            places[row, :length] = read.places
        sound = self._draw_sound(count, random, plain)
        text_mask = text_mask.astype(np.float32)
        strays = [
            random.uniform(*((0, 0) if plain else far), count).astype(np.float32)
            for far in (train.misheard, (0, train.style_noise))
        ]
        return Windows(wav, codes, mask, text, text_mask, starts, places, *sound, *strays)

    def _draw_sound(
        self, count: int, random: np.random.Generator, plain: bool
    ) -> tuple[Equaliser, np.ndarray, np.ndarray]:
        shares = (0.0, 0.0) if plain else (_EQUALISED, _LOW_PASSED)
        equaliser = draw_equaliser(random, count, _DECIBELS, shares[0], _LOW_PASS, shares[1])
        gain = np.exp(random.uniform(*_GAIN, count)) if not plain else np.ones(count)
        floor = 10 ** (-random.uniform(*_FLOOR, count) / 20)
        is_dull = equaliser.low_pass < self.data.sampling_rate
        hiss = np.where(is_dull, floor, 0)
        return equaliser, gain.astype(np.float32), hiss.astype(np.float32)

    def _read(
        self, spoken: Spoken, start: int, frames: int, random: np.random.Generator, plain: bool
    ) -> Reading:
        """The text of a window: all of it, about what is spoken, or only its first phoneme.

        All of it may stand between other clips' texts, as if the recording were longer.
        """
        train = self.settings.train
        ids, phones = np.array(spoken.clip.ids), np.array(spoken.clip.phones)
        shown = frames_at_speed(start + frames, spoken.speed, len(spoken.places))[start:]
        at = spoken.places[shown]
        kind = 1.0 if plain else random.random()
        first, last = 0, len(ids)
        if kind < 1 - train.whole_text:
            before, after = int(at[0]), int(at[-1]) + 1
            first = int(phones[before]) if before > 0 else 0
            last = int(phones[after]) if after < len(phones) else len(ids)
            first = max(0, first - int(random.integers(_MARGIN)))
            last = min(len(ids), last + int(random.integers(_MARGIN)))
        last = min(max(last, first + 1), first + train.phonemes)
        ids, moved = ids[first:last], -first
        if not plain and kind >= 1 - train.whole_text and random.random() < train.further_texts:
            around = self._further_texts(train.phonemes - len(ids), random)
            ids, moved = np.concatenate([around[0], ids, around[1]]), len(around[0])
        is_heard = np.ones(len(ids), bool)
        if not plain:
            is_heard[1:] = random.random(len(ids) - 1) >= train.lost_phonemes
        if kind < train.no_text:
            is_heard[1:] = False
            return Reading(ids, is_heard, np.full(frames, -1))
        places = np.where(spoken.labels[shown] > 0, phones[np.maximum(at, 0)] + moved, -1)
        is_known = (places >= max(0, moved)) & (places < last + moved)
        is_known &= is_heard[np.where(is_known, places, 0)]
        return Reading(ids, is_heard, np.where(is_known, places, -1))

    def _further_texts(self, room: int, random: np.random.Generator) -> list[np.ndarray]:
        """The end of another clip's text, and the beginning of one; `room` phonemes at most."""
        before = int(random.integers(room + 1))
        after = int(random.integers(room - before + 1))
        texts = [
            self.spoken[number].clip.ids for number in random.integers(len(self.spoken), size=2)
        ]
        ends = [texts[0][max(0, len(texts[0]) - before) :], texts[1][:after]]
        return [np.array(ids, np.int64) for ids in ends]

    def finish(self, windows: Windows, key: mx.array) -> FastBatch:
        """Sound, spectrogram and codes on the device."""
        train, data = self.settings.train, self.data
        samples = windows.wav.shape[1]
        length = 1 << (samples - 1).bit_length()
        wav = mx.array(windows.wav).astype(mx.float32) / 32768
        wav = mx.pad(wav, [(0, 0), (0, length - samples)])
        if (windows.equaliser.gains != 0).any() or (windows.hiss != 0).any():
            wav = equalise(wav, data.sampling_rate, windows.equaliser)
            # Where a low pass leaves nothing, the logarithm of it has no useful gradient.
            hiss = mx.random.normal(wav.shape, key=key)
            wav = wav + mx.array(windows.hiss)[:, None] * hiss
        wav = wav[:, :samples]
        peak = mx.maximum(mx.max(mx.abs(wav), axis=1), 1e-3)
        wav = wav * mx.minimum(mx.array(windows.gain), _LOUDEST / peak)[:, None]
        mask, starts = mx.array(windows.mask), mx.array(windows.starts)
        code_key, style_key = mx.random.split(key)
        codes = self.book[mx.array(windows.codes)]
        if windows.misheard.any():
            codes = self._mishear(codes, mx.array(windows.misheard), code_key)
        shape = (len(codes), self.settings.model.model.gin_channels)
        strayed = mx.array(windows.styles)[:, None] * mx.random.normal(shape, key=style_key)
        first = starts[:, None] * data.hop_length + self.reach
        own = mx.take_along_axis(wav, first + mx.arange(train.segment_size), axis=1)
        return FastBatch(
            quantized=codes,
            spec=magnitudes_within(wav, data) * mask,
            mask=mask,
            text=mx.array(windows.text),
            text_mask=mx.array(windows.text_mask),
            starts=starts,
            wav=own,
            places=mx.array(windows.places),
            style_noise=strayed,
        )

    def _mishear(self, codes: mx.array, far: mx.array, key: mx.array) -> mx.array:
        """Entries `(B, K, C)` as they might have been found in clips that nothing has learnt from.

        The content encoder knows the clips that it was trained on, and finds their codes better
        than others'. Noise that a few codes in a row share takes each to another entry; where there
        is no code there is none afterwards.
        """
        count, length, width = codes.shape
        noise = mx.random.normal((count, length + _TAPS - 1, width), key=key)
        noise = sum(noise[:, tap : tap + length] for tap in range(_TAPS)) / _TAPS**0.5
        strayed = codes + far[:, None, None] * self._spread * noise
        is_code = mx.any(codes != 0, axis=2, keepdims=True)
        found = self.book[nearest_entries(strayed, self.book[:-1])]
        return mx.where(is_code, found, codes)


def _spread(entries: np.ndarray, settings: Settings) -> mx.array:
    """`(C,)`: how far entries are apart, 0 in the directions of the melody, which is kept."""
    spread = entries.std(axis=0).astype(np.float32)
    first = settings.distil.directions
    spread[first : first + MELODY_SIDES] = 0
    return mx.array(spread)


def spectrogram_reach(data: DataSection) -> int:
    """Samples that a spectrogram's first and last frame see beyond their hops."""
    return (data.filter_length - data.hop_length) // 2


def magnitudes_within(wav: mx.array, data: DataSection) -> mx.array:
    """The product's spectrogram, without its reflection at the ends.

    Args:
        wav: `(B, N)`, N = T hop_length + 2 reach.

    Returns:
        `(B, T, F)`.
    """
    frames = frames_of(wav, data.filter_length, data.hop_length)
    spectrum = mx.fft.rfft(frames * _hann(data.win_length), axis=-1)
    power = mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum))
    return mx.sqrt(power + _MAGNITUDE_FLOOR)


def read_spoken(work: Path, settings: Settings) -> list[Spoken]:
    """All clips at all speeds."""
    clips = read_clip_list(work / "clips.json")
    aligned = read_clips(work / "labels.npz", "align")
    codes = iter(read_clips(work / "codes.npz", "codebook")["codes"])
    data = settings.model.data
    reach, spoken = spectrogram_reach(data), []
    for number, speed in enumerate(settings.speech.speeds):
        wavs = read_clips(work / f"wav32_{number}.npz", "prepare")["wav"]
        for clip, wav, labels, places in zip(
            clips, wavs, aligned["labels"], aligned["places"], strict=True
        ):
            padded = np.pad(wav, reach, mode="reflect")
            frames = len(wav) // data.hop_length
            own = next(codes).astype(np.int32)
            spoken.append(Spoken(clip, speed, padded, frames, own, labels, places))
    return spoken


def read_window_source(work: Path, settings: Settings) -> WindowSource:
    """The source of the stage `train`."""
    book = read_arrays(work / "codebook.npz", "codebook")["entries"]
    return WindowSource(read_spoken(work, settings), book, settings)
