"""Has ffmpeg decode what libsndfile cannot read, within limits of time, length and disk space."""

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
_BYTES_PER_SECOND = 100_000  # of the input; even a slow machine decodes ten times as fast
_DISK_SHARE = 0.9  # of the free space; the rest is left to others
# ffmpeg returns 0 where it could not write, and leaves a part of the recording.
_DISK_FULL = ("No space left", "quota exceeded", "File too large")


@contextlib.contextmanager
def decode(program: str, path: Path, longest: float | None = None) -> Iterator[Path]:
    """Decodes a recording to a temporary 32-bit WAV at the recording's own rate.

    Args:
        program: ffmpeg.
        path: any file.
        longest: seconds that may be read, None for any number; a little more is decoded.

    Raises:
        DataError: ffmpeg cannot read the recording, or does not come to an end.
        UserError: there is too little space for temporary files, or ffmpeg cannot be run: no fault
            of the recording's.
    """
    try:
        folder = tempfile.mkdtemp(prefix="mlx_vits-")
    except OSError as error:
        raise _no_space(path) from error
    try:
        output = Path(folder) / "decoded.wav"
        _decode(program, path, output, longest)
        yield output
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _decode(program: str, path: Path, output: Path, longest: float | None) -> None:
    most_bytes = int(shutil.disk_usage(output.parent).free * _DISK_SHARE)
    # As a file, whatever protocol its name begins like; and no list within it is followed further.
    source = ["-protocol_whitelist", "file", "-i", f"file:{path}"]
    limits = ["-fs", str(most_bytes), *(["-t", str(longest + 1)] if longest else [])]
    command = [program, "-nostdin", "-v", "error", *source, "-vn", *limits, "-rf64", "auto"]
    done = _run([*command, "-acodec", "pcm_f32le", str(output)], path)
    said = done.stderr.decode(errors="replace")
    is_full = any(words in said for words in _DISK_FULL) or done.returncode == -signal.SIGXFSZ
    size = output.stat().st_size if output.is_file() else 0
    if is_full or size >= most_bytes:
        raise _no_space(path)
    if done.returncode != 0 or not size:
        raise DataError(
            f"{path}: holds no sound that ffmpeg can read; export it again as WAV, or take it out"
        )


def _run(command: list[str], path: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs ffmpeg, and stops it with all that it has started where it takes too long."""
    patience = _START_SECONDS + path.stat().st_size / _BYTES_PER_SECOND
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own
        )
    except OSError as error:
        raise UserError(
            f"{command[0]}: cannot be run ({error.strerror}); install ffmpeg again"
        ) from error
    with process:
        try:
            _, said = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"{path}: has kept ffmpeg busy for {patience:.0f} s without an end; export it "
                "again as WAV, or take it out"
            ) from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, None, said)


def _no_space(path: Path) -> UserError:
    try:
        folder = tempfile.gettempdir()
    except OSError:  # none of the usual ones can be written to
        folder = os.environ.get("TMPDIR", "/tmp")
    return UserError(
        f"{path}: there is too little room in {folder} to decode it; free some space there, or set "
        "TMPDIR to a folder with more"
    )
