"""Spectrograms of a prepared voice, cached in memory-mapped files.

Of a clip's training inputs only the spectrogram is worth caching: for 5 s of audio it takes 4.6 ms
to compute and 0.3 ms to copy from a mapped file; audio and features take 0.9 ms each to read and
check. It is stored in fp32, so training sees the same bits.

The header of a file holds a digest of the recording's bytes and of the parameters, and a checksum
of the data. A file that does not match is computed again.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.audio.spectrogram import spectrogram_in_thread
from mlx_vits.config import DataSection
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write, inside, make_folder

SPECTROGRAM_FOLDER = "spectrograms"  # of a prepared folder; ours, upstream ignores it
_MAGIC = b"mlx_vits spec 1\n"
_HEADER = struct.Struct("<16s32sIII4x")  # magic, key, checksum, frames, bins


class _Stamp(NamedTuple):
    """File attributes that change whenever its content does, as far as the system knows."""

    size: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)


class SpectrogramStore:
    """Cached linear spectrograms of a prepared folder.

    A file is checked against its recording on first use, and again whenever either has changed. If
    files cannot be written, spectrograms are computed each time.

    Args:
        folder: the prepared folder.
        data: `filter_length`, `hop_length`, `win_length` and `sampling_rate`.
    """

    def __init__(self, folder: Path, data: DataSection):
        self.folder, self.data = folder / SPECTROGRAM_FOLDER, data
        self._checked: dict[Path, tuple[_Stamp, _Stamp]] = {}
        self._can_write = True

    def read(self, recording: Path, wav: np.ndarray) -> np.ndarray:
        """Return the spectrogram of a recording.

        Args:
            recording: its file.
            wav: its samples, `(N,)` float32.

        Returns:
            `(T, F)` float32; read-only and memory-mapped if it is cached.

        Raises:
            ValueError: the recording is shorter than a window.
        """
        path = self.folder / f"{recording.name}.spec"
        if self._is_checked(path, recording):
            return _map(path)
        key = self._key(recording)
        if not _is_whole(path, key):
            spec = compute_spectrogram(wav, self.data)
            if not self._write(path, key, spec):
                return spec
        self._checked[path] = (_Stamp.of(path), _Stamp.of(recording))
        return _map(path)

    def _is_checked(self, path: Path, recording: Path) -> bool:
        known = self._checked.get(path)
        try:
            return known is not None and known == (_Stamp.of(path), _Stamp.of(recording))
        except OSError:
            return False

    def _key(self, recording: Path) -> bytes:
        """Return a digest of everything a spectrogram depends on."""
        data = self.data
        sizes = (data.sampling_rate, data.filter_length, data.hop_length, data.win_length)
        made_with = f"{sizes} mlx {_mlx_version()}"
        return hashlib.sha256(made_with.encode() + recording.read_bytes()).digest()

    def _write(self, path: Path, key: bytes, spec: np.ndarray) -> bool:
        if not self._can_write:
            return False
        try:
            make_folder(inside(self.folder.parent, self.folder.name))
            with atomic_write(path) as file:
                file.write(_HEADER.pack(_MAGIC, key, zlib.crc32(spec.data), *spec.shape))
                file.write(spec.data)
        except UserError:  # a full or read-only disk costs time, not the run
            self._can_write = False
        return self._can_write


def compute_spectrogram(wav: np.ndarray, data: DataSection) -> np.ndarray:
    """Compute the linear magnitude spectrogram of one clip on the CPU.

    Args:
        wav: `(N,)` float32 within [-1, 1].

    Returns:
        `(T, F)` float32.

    Raises:
        ValueError: the waveform is shorter than a window.
    """
    return spectrogram_in_thread(wav, data)  # the caller may be a worker thread


def _map(path: Path) -> np.ndarray:
    frames, bins = _HEADER.unpack(_read_header(path))[3:]
    return np.memmap(path, np.float32, "r", _HEADER.size, (frames, bins))


def _read_header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER.size)


def _is_whole(path: Path, key: bytes) -> bool:
    """Whether a file exists, is intact, and belongs to `key`."""
    try:
        magic, made_from, checksum, frames, bins = _HEADER.unpack(_read_header(path))
        if magic != _MAGIC or made_from != key:
            return False
        if path.stat().st_size != _HEADER.size + frames * bins * 4:
            return False
        return zlib.crc32(_map(path).data) == checksum
    except (OSError, struct.error, ValueError):
        return False


@cache
def _mlx_version() -> str:
    """MLX's version, whose metadata would be parsed anew for every recording."""
    return version("mlx")
