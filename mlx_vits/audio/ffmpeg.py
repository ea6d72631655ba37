"""Decode with ffmpeg what libsndfile cannot read, within limits on time, length and disk space."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlx_vits.errors import DataError, UserError

_START_SECONDS = 60.0
_BYTES_PER_SECOND = 100_000  # of the input; a slow machine is still ten times faster
_DISK_SHARE = 0.9  # of the free space; the rest is for other programs
# ffmpeg exits with 0 after a failed write and leaves a truncated file.
_DISK_FULL = ("No space left", "quota exceeded", "File too large")


@contextlib.contextmanager
def decode(program: str, path: Path, max_seconds: float | None = None) -> Iterator[Path]:
    """Decode a recording to a temporary 32-bit float WAV at its own sampling rate.

    Args:
        program: path of ffmpeg.
        path: any file.
        max_seconds: limit on the length, None for none; slightly more is decoded.

    Yields:
        The temporary file, deleted on exit.

    Raises:
        DataError: ffmpeg cannot read the recording or does not finish in time.
        UserError: temporary files do not fit on the disk, or ffmpeg cannot be run; the recording is
            not at fault.
    """
    try:
        folder = tempfile.mkdtemp(prefix="mlx_vits-")
    except OSError as error:
        raise _no_space(path) from error
    try:
        output = Path(folder) / "decoded.wav"
        _decode(program, path, output, max_seconds)
        yield output
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _decode(program: str, path: Path, output: Path, max_seconds: float | None) -> None:
    max_bytes = int(shutil.disk_usage(output.parent).free * _DISK_SHARE)
    # Always a file, even if its name looks like a URL; a playlist inside must not open others.
    source = ["-protocol_whitelist", "file", "-i", f"file:{path}"]
    limits = ["-fs", str(max_bytes), *(["-t", str(max_seconds + 1)] if max_seconds else [])]
    command = [program, "-nostdin", "-v", "error", *source, "-vn", *limits, "-rf64", "auto"]
    done = _run([*command, "-acodec", "pcm_f32le", str(output)], path)
    stderr = done.stderr.decode(errors="replace")
    is_full = any(words in stderr for words in _DISK_FULL) or done.returncode == -signal.SIGXFSZ
    size = output.stat().st_size if output.is_file() else 0
    if is_full or size >= max_bytes:
        raise _no_space(path)
    if done.returncode != 0 or not size:
        raise DataError(
            f"{path}: holds no sound that ffmpeg can read; export it again as WAV, or take it out"
        )


def _run(command: list[str], path: Path) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg; on a timeout kill it with all its child processes."""
    timeout = _START_SECONDS + path.stat().st_size / _BYTES_PER_SECOND
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # its own process group
        )
    except OSError as error:
        raise UserError(
            f"{command[0]}: cannot be run ({error.strerror}); install ffmpeg again"
        ) from error
    with process:
        try:
            _, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"{path}: ffmpeg has not finished decoding it within {timeout:.0f} s; export it "
                "again as WAV, or take it out"
            ) from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, None, stderr)


def _no_space(path: Path) -> UserError:
    try:
        folder = tempfile.gettempdir()
    except OSError:  # no usual temporary folder is writable
        folder = os.environ.get("TMPDIR", "/tmp")
    return UserError(
        f"{path}: there is too little room in {folder} to decode it; free some space there, or set "
        "TMPDIR to a folder with more"
    )
