"""Sound written to a file while it is being made, in any format that libsndfile writes."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile

from mlx_vits.errors import UserError
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

    What was written is in place under its name however the block ends, unless nothing was.

    Args:
        path: to write; its suffix is one of `FORMATS`.
        rate: of what is written, in Hz.
        overwrite: whether a file that is there already is replaced.

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
        self.path, self._rate = path, rate
        self._part = temporary_path(path.parent)
        self.samples = 0

    def __enter__(self) -> SoundFile:
        kind, subtype = FORMATS[self.path.suffix.lower()]
        self._resample = subtype == "OPUS"
        rate = _OPUS_RATE if self._resample else self._rate
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.path.parent, below=False)
            # Held, lest another process sweeps it away.
            self._held = Held(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self._file = soundfile.SoundFile(
                self._part, "w", samplerate=rate, channels=1, format=kind, subtype=subtype
            )
        except (OSError, RuntimeError) as error:
            self._part.unlink(missing_ok=True)
            raise self._cannot(error) from error
        return self

    def write(self, wav: np.ndarray) -> None:
        """Append samples `(N,)` float32, limited to full scale."""
        wav = np.clip(wav, -1.0, 1.0)
        self.samples += len(wav)
        if self._resample:
            wav = self._to_opus(wav)
        try:
            for start in range(0, len(wav), _BLOCK):
                self._file.write(wav[start : start + _BLOCK])
        except (OSError, RuntimeError) as error:
            raise self._cannot(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
            if self.samples:
                self._part.replace(self.path)
        except (OSError, RuntimeError) as fault:
            if error is None:
                raise self._cannot(fault) from fault
        finally:
            os.close(self._held.fd)
            self._part.unlink(missing_ok=True)

    def _to_opus(self, wav: np.ndarray) -> np.ndarray:
        from mlx_vits.audio.files import resample

        return resample(wav, self._rate, _OPUS_RATE)

    def _cannot(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        return UserError(
            f"{self.path}: cannot be written ({reason}); check the folder and its disk"
        )
