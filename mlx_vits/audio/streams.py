"""Recordings of any length, a block at a time: mixed to one channel, at any rate.

The resampler is soxr, as for whole clips. Axes: N samples, C channels.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from mlx_vits.audio.formats import SoundFile, open_recording
from mlx_vits.errors import DataError

_BLOCK = 1 << 18  # samples, all channels together
_LOWEST_RATE, _HIGHEST_RATE = 1000, 768_000  # Hz, that any recorder has
_LOWEST_SPEECH_RATE = 16000
_MOST_FRAMES = 1 << 26  # held in memory: 23 minutes at 48 kHz
_UNKNOWN = 1 << 62  # libsndfile's count of frames is above this where the header gives none
_LARGEST = 1e12  # beyond the integers that some programs write as floats
_SILENT_POWER = 1e-10

# The average is taken where it costs no more than with one dead channel of two, which is 6 dB.
_LEAST_KEPT = 0.2  # share of the loudest channel's power
_AS_LOUD = 0.8  # share of the loudest channel's power, 1 dB


class Stream:
    """A recording that can be passed through any number of times, block by block.

    Attributes:
        path: as the user gave it, for messages.
        rate: Hz.
        channels: how many.
        frames: as the header gives them, which may be wrong; None where it gives none.
    """

    def __init__(self, path: Path, header: SoundFile, longest: float | None):
        """Checks what the header says.

        Args:
            path: the recording.
            header: of the same, or of what ffmpeg made of it.
            longest: seconds that may be read, None for any number.

        Raises:
            DataError: the recording is too long, or its rate is absurd.
        """
        self.path, self._readable = path, header.path
        self.rate, self.channels = int(header.samplerate), int(header.channels)
        self.frames = int(header.frames) if header.frames < _UNKNOWN else None
        if not _LOWEST_RATE <= self.rate <= _HIGHEST_RATE:
            raise DataError(
                f"{path}: is said to be at {self.rate} Hz, which no recording is; export it again"
            )
        self._most = min(longest * self.rate, _MOST_FRAMES) if longest is not None else None
        self._check_length(self.frames or 0)

    def _check_length(self, frames: int) -> None:
        if self._most is not None and frames > self._most:
            raise DataError(
                f"{self.path}: is more than {self._most / self.rate / 60:.0f} minutes long; cut it "
                "into clips of 3 to 10 s"
            )

    @contextlib.contextmanager
    def naming_faults(self) -> Iterator[None]:
        """Makes one sentence of what libsndfile and numpy raise while the recording is read."""
        try:
            yield
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DataError(f"{self.path}: is damaged; export it again or take it out") from error
        except MemoryError as error:
            raise DataError(
                f"{self.path}: does not fit into memory; cut it into shorter recordings"
            ) from error

    def blocks(self) -> Iterator[np.ndarray]:
        """Reads the recording to its real end, whatever its header says.

        Yields:
            `(N, C)` float32, full scale 1.0.

        Raises:
            DataError: it is damaged, too long, or holds something that is no sound.
        """
        count = 0
        with self.naming_faults(), SoundFile(self._readable) as file:
            size = max(1, _BLOCK // self.channels)
            # Not `blocks()`: where a file is cut off, that gives its last buffer again.
            while len(block := file.read(size, dtype="float32", always_2d=True)):
                count += len(block)
                self._check_length(count)
                self._check_values(block)
                yield block

    def _check_values(self, block: np.ndarray) -> None:
        peak = float(np.abs(block).max())
        if not np.isfinite(peak):
            raise DataError(
                f"{self.path}: holds samples that are not numbers; record or export it again"
            )
        if peak > _LARGEST:
            raise DataError(
                f"{self.path}: has a peak of {peak:.0e} where 1.0 is full scale; export it again"
            )

    @functools.cached_property
    def channel(self) -> int | None:
        """The one channel to read, from 0; None for the average of all.

        Averaging is what GPT-SoVITS does, but channels of opposite polarity cancel out, and one
        voice among several dead channels becomes faint. Then it is the loudest, and of channels
        within 1 dB of it the first. Decided from the whole recording.
        """
        if self.channels == 1:
            return None
        # Sums and sums of squares, of every channel and of their average; an offset is no sound.
        sums, squares, count = np.zeros(self.channels + 1), np.zeros(self.channels + 1), 0
        for block in self.blocks():
            columns = np.column_stack([block, block.mean(axis=1)]).astype(np.float64)
            sums += columns.sum(axis=0)
            squares += np.square(columns).sum(axis=0)
            count += len(block)
        power = (squares - np.square(sums) / max(1, count)) / max(1, count)
        loudest = power[:-1].max()
        if loudest < _SILENT_POWER or power[-1] >= _LEAST_KEPT * loudest:
            return None
        return int(np.argmax(power[:-1] >= _AS_LOUD * loudest))

    def mono(self) -> Iterator[np.ndarray]:
        """Yields blocks `(N,)` float32: the average of all channels, or the one of `channel`.

        Raises:
            DataError: as `blocks`.
        """
        channel = self.channel
        for block in self.blocks():
            if self.channels == 1:
                yield block[:, 0]
            elif channel is None:
                yield block.mean(axis=1)
            else:
                yield np.ascontiguousarray(block[:, channel])

    def speech(self, rate: int) -> Iterator[np.ndarray]:
        """Yields blocks `(N,)` float32, mono, resampled to `rate` Hz.

        Raises:
            DataError: as `blocks`, or the recording was made below 16 kHz.
        """
        check_speech_rate(self.path, self.rate, rate)
        if self.rate == rate:
            yield from self.mono()
            return
        resampler = soxr.ResampleStream(self.rate, rate, 1, "float32", "HQ")
        for block in self.mono():
            yield resampler.resample_chunk(block)
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


@contextlib.contextmanager
def open_stream(path: Path, longest: float | None = None) -> Iterator[Stream]:
    """Opens a recording, by way of ffmpeg where libsndfile does not know its form.

    Args:
        path: the recording.
        longest: seconds that may be read, None for any number.

    Raises:
        DataError: it cannot be read, or is too long.
        UserError: as `open_recording`.
    """
    with open_recording(path, longest) as header:
        yield Stream(path, header, longest)


def stream_recording(path: Path, rate: int) -> Iterator[np.ndarray]:
    """A recording in blocks, mono as `read_audio` makes it, at a given rate.

    Args:
        path: the recording.
        rate: Hz, of the result.

    Yields:
        `(N,)` float32, full scale 1.0.

    Raises:
        DataError: it cannot be read, holds something that is no sound, or was made below 16 kHz.
        UserError: as `open_recording`.
    """
    with open_stream(path) as stream:
        yield from stream.speech(rate)


def check_speech_rate(path: str | Path, rate: int, best: int) -> None:
    """Checks that a recording has the treble that a voice needs.

    Raises:
        DataError: it was made below 16 kHz.
    """
    if rate < _LOWEST_SPEECH_RATE:
        raise DataError(
            f"{path}: was recorded at {rate} Hz, which lacks the upper half of a voice; "
            f"record it at {_LOWEST_SPEECH_RATE} Hz or more, best at {best} Hz"
        )


def describe_channel(channel: int, channels: int) -> str:
    """Why one channel alone is read, in words that follow a recording's name."""
    return (
        f"only channel {channel + 1} of {channels} is read, since their average would lose most of "
        "the voice"
    )
