"""Sound written to a file while it is being made, in any format that libsndfile writes."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
import soxr

from mlx_vits.errors import UserError
from mlx_vits.system.faults import unwritable
from mlx_vits.system.files import sweep, temporary_path
from mlx_vits.system.locks import Held

# Suffix to libsndfile's format and sub-type.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_OPUS_RATE = 48000  # the nearest that Opus takes
_BLOCK = 1 << 15  # samples; libsndfile's Vorbis overflows its stack on longer ones


class SoundFile:
    """A sound file that grows, as a context manager.

    What was written is in place under its name however the block ends, unless nothing was. Where
    another program has meanwhile written a file of that name, it is in place under another.

    Args:
        path: to write; its suffix is one of `FORMATS`.
        rate: of what is written, in Hz.
        overwrite: whether a file that is there already is replaced.

    Attributes:
        path: where it is, at the end.
        samples: that were written.

    Raises:
        UserError: the format is unknown, the file exists or cannot be written.
    """

    def __init__(self, path: Path, rate: int, *, overwrite: bool = False):
        if path.suffix.lower() not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise UserError(f"{path}: is of no format that can be written; choose one of {known}")
        if path.is_dir():
            raise UserError(f"{path}: is a folder; write {path}/ for one file a line")
        if path.exists() and not overwrite:
            raise UserError(f"{path}: is there already; choose another name, or give --force")
        self.path, self._rate, self._overwrite = path, rate, overwrite
        self._part = temporary_path(path.parent)
        self.samples = 0

    def __enter__(self) -> SoundFile:
        kind, subtype = FORMATS[self.path.suffix.lower()]
        rate, self._resampler = self._rate, None
        if subtype == "OPUS":
            rate = _OPUS_RATE
            self._resampler = soxr.ResampleStream(self._rate, rate, 1, dtype="float32")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.path.parent, below=False)
            # Held, lest another process sweeps it away.
            self._held = Held(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self._file = soundfile.SoundFile(
                self._part, "w", samplerate=rate, channels=1, format=kind, subtype=subtype
            )
        except OSError as error:
            raise UserError(unwritable(self.path, error)) from error
        except RuntimeError as error:
            fault = self._cannot(error)
            os.close(self._held.fd)
            self._part.unlink(missing_ok=True)
            raise fault from error
        return self

    def write(self, wav: np.ndarray) -> None:
        """Append samples `(N,)` float32, limited to full scale."""
        wav = np.clip(wav, -1.0, 1.0).astype(np.float32)
        try:
            self._append(wav if self._resampler is None else self._resampler.resample_chunk(wav))
        except (OSError, RuntimeError) as error:
            raise self._cannot(error) from error
        self.samples += len(wav)

    def _append(self, wav: np.ndarray) -> None:
        for start in range(0, len(wav), _BLOCK):
            self._file.write(wav[start : start + _BLOCK])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            fault = self._close()
            if self.samples:
                wished = self.path
                self._place()
                if self.path != wished and error is None:
                    raise UserError(
                        f"{wished}: was written by another program meanwhile; the speech is in "
                        f"{self.path}"
                    )
            if fault is not None and error is None:
                raise self._cannot(fault) from fault
        except OSError as missed:
            raise self._cannot(missed) from missed
        finally:
            os.close(self._held.fd)
            self._part.unlink(missing_ok=True)

    def _close(self) -> OSError | RuntimeError | None:
        """Write what encoders hold back; return what went wrong."""
        try:
            if self._resampler is not None:
                self._append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            self._file.close()
            self._probe()
            os.fsync(self._held.fd)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()
            return error
        return None

    def _place(self) -> None:
        """Give the file its name, or a free one if that has been taken meanwhile."""
        if self._overwrite:
            self._part.replace(self.path)
            return
        wished = self.path
        for number in itertools.count(2):
            try:
                os.link(self._part, self.path)
                return
            except OSError:
                if not os.path.lexists(self.path):  # a file system without links
                    self._part.replace(self.path)
                    return
            self.path = wished.with_name(f"{wished.stem}-{number}{wished.suffix}")

    def _probe(self) -> None:
        """Write a byte and take it back: libsndfile keeps to itself why it could not write.

        Raises:
            OSError: nothing can be written.
        """
        size = os.fstat(self._held.fd).st_size
        try:
            os.pwrite(self._held.fd, b"\0", size)
        finally:
            os.ftruncate(self._held.fd, size)

    def _cannot(self, error: Exception) -> UserError:
        if isinstance(error, OSError):
            return UserError(unwritable(self.path, error))
        try:
            self._probe()
        except OSError as fault:
            return UserError(unwritable(self.path, fault))
        words = str(error).rstrip(".")
        return UserError(f"{self.path}: cannot be written ({words}); choose another format")
