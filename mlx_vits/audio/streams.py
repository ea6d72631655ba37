"""Stream recordings of any length in blocks: mixed down to mono, at any rate.

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

_BLOCK = 1 << 18  # samples over all channels
_LOWEST_RATE, _HIGHEST_RATE = 1000, 768_000  # Hz, of real recorders
_LOWEST_SPEECH_RATE = 16000
_MAX_FRAMES = 1 << 26  # held in memory: 23 minutes at 48 kHz
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's frame count is above this if the header states none
_MAX_PEAK = 1e12  # above integer samples that some programs store as floats
_SILENT_POWER = 1e-10

# Averaging may cost up to 7 dB: with one of two channels dead it costs 6 dB.
_MIN_KEPT = 0.2  # of the loudest channel's power
_AS_LOUD = 0.8  # of the loudest channel's power: 1 dB below


class Stream:
    """A recording that can be read block by block, any number of times.

    Attributes:
        path: as the user gave it, for messages.
        rate: Hz.
        channels: number of channels.
        frames: as the header states, which may be wrong; None if it does not say.
    """

    def __init__(self, path: Path, header: SoundFile, max_seconds: float | None):
        """Check the header.

        Args:
            path: the recording.
            header: of the recording or of its decoded copy.
            max_seconds: limit on the length, None for none.

        Raises:
            DataError: the recording is too long, or its rate is impossible.
        """
        self.path, self._readable = path, header.path
        self.rate, self.channels = int(header.samplerate), int(header.channels)
        self.frames = int(header.frames) if header.frames < _UNKNOWN_FRAMES else None
        if not _LOWEST_RATE <= self.rate <= _HIGHEST_RATE:
            raise DataError(
                f"{path}: states a rate of {self.rate} Hz, which no recorder has; export it again"
            )
        self._max_frames = (
            min(max_seconds * self.rate, _MAX_FRAMES) if max_seconds is not None else None
        )
        self._check_length(self.frames or 0)

    def _check_length(self, frames: int) -> None:
        if self._max_frames is not None and frames > self._max_frames:
            raise DataError(
                f"{self.path}: is more than {self._max_frames / self.rate / 60:.0f} minutes long; "
                "cut it into clips of 3 to 10 s"
            )

    @contextlib.contextmanager
    def data_errors(self) -> Iterator[None]:
        """Turn errors of libsndfile and numpy while reading into a `DataError`."""
        try:
            yield
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DataError(f"{self.path}: is damaged; export it again or take it out") from error
        except MemoryError as error:
            raise DataError(
                f"{self.path}: does not fit into memory; cut it into shorter recordings"
            ) from error

    def blocks(self) -> Iterator[np.ndarray]:
        """Read the recording to its actual end, whatever its header says.

        Yields:
            `(N, C)` float32, full scale 1.0.

        Raises:
            DataError: it is damaged, too long, or holds invalid samples.
        """
        count = 0
        with self.data_errors(), SoundFile(self._readable) as file:
            size = max(1, _BLOCK // self.channels)
            # Not `file.blocks()`, which repeats its last buffer if the file is truncated.
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
        if peak > _MAX_PEAK:
            raise DataError(
                f"{self.path}: has a peak of {peak:.0e} where 1.0 is full scale; export it again"
            )

    @functools.cached_property
    def channel(self) -> int | None:
        """The index of the only channel to read; None to average all.

        Upstream averages, but channels of opposite polarity cancel, and a voice on one of several
        channels becomes faint. In those cases the loudest channel is read; of channels within 1 dB
        of it, the first. Decided from the whole recording.
        """
        if self.channels == 1:
            return None
        # Variances of every channel and of their average: a DC offset is not sound.
        sums, squares, count = np.zeros(self.channels + 1), np.zeros(self.channels + 1), 0
        for block in self.blocks():
            columns = np.column_stack([block, block.mean(axis=1)]).astype(np.float64)
            sums += columns.sum(axis=0)
            squares += np.square(columns).sum(axis=0)
            count += len(block)
        power = (squares - np.square(sums) / max(1, count)) / max(1, count)
        loudest = power[:-1].max()
        if loudest < _SILENT_POWER or power[-1] >= _MIN_KEPT * loudest:
            return None
        return int(np.argmax(power[:-1] >= _AS_LOUD * loudest))

    def mono(self) -> Iterator[np.ndarray]:
        """Yield mono blocks `(N,)` float32: the average of all channels, or the one of `channel`.

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
        """Yield mono blocks `(N,)` float32 resampled to `rate` Hz.

        Raises:
            DataError: as `blocks`, or the recording's own rate is below 16 kHz.
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
def open_stream(path: Path, max_seconds: float | None = None) -> Iterator[Stream]:
    """Open a recording for streaming, through ffmpeg if libsndfile does not know the format.

    Args:
        path: the recording.
        max_seconds: limit on the length, None for none.

    Raises:
        DataError: it cannot be read or is too long.
        UserError: as `open_recording`.
    """
    with open_recording(path, max_seconds) as header:
        yield Stream(path, header, max_seconds)


def stream_recording(path: Path, rate: int) -> Iterator[np.ndarray]:
    """Stream a recording in blocks, mixed to mono as by `read_audio` and resampled.

    Args:
        path: the recording.
        rate: target rate, Hz.

    Yields:
        `(N,)` float32, full scale 1.0.

    Raises:
        DataError: it cannot be read, holds invalid samples, or its own rate is below 16 kHz.
        UserError: as `open_recording`.
    """
    with open_stream(path) as stream:
        yield from stream.speech(rate)


def check_speech_rate(path: str | Path, rate: int, best: int) -> None:
    """Refuse a recording whose sampling rate is too low for a voice.

    Args:
        path: the recording, for messages.
        rate: its own rate, Hz.
        best: the rate to recommend, Hz.

    Raises:
        DataError: the rate is below 16 kHz.
    """
    if rate < _LOWEST_SPEECH_RATE:
        raise DataError(
            f"{path}: was recorded at {rate} Hz, which lacks the upper half of a voice; "
            f"record it at {_LOWEST_SPEECH_RATE} Hz or more, best at {best} Hz"
        )


def describe_channel(channel: int, channels: int) -> str:
    """Say why only one channel is read, as a clause that follows a recording's name."""
    return (
        f"only channel {channel + 1} of {channels} is read, since their average would lose most of "
        "the voice"
    )
