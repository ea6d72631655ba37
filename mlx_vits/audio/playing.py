"""Sound played while it is being made."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from types import TracebackType

import numpy as np

from mlx_vits.errors import UserError

# Programs that play raw samples from their standard input, by what systems have.
_PLAYERS = {
    "play": "-q -t raw -r {rate} -e signed -b 16 -c 1 -",
    "ffplay": "-loglevel quiet -nodisp -autoexit -f s16le -ar {rate} -ch_layout mono -i -",
    "paplay": "--raw --format=s16le --rate={rate} --channels=1",
    "aplay": "-q -t raw -f S16_LE -r {rate} -c 1 -",
}


class Player:
    """Play samples as they come, as a context manager; leaving it waits until all are played.

    Uses the package `sounddevice` where it is installed, else a program.

    Args:
        rate: Hz.

    Raises:
        UserError: there is nothing to play with.
    """

    def __init__(self, rate: int):
        self._rate = rate
        self._process: subprocess.Popen[bytes] | None = None
        try:
            import sounddevice  # type: ignore[import-not-found,import-untyped,unused-ignore]

            self._stream = sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32")
        except (ImportError, OSError) as error:
            self._stream = None
            self._command = self._find_program(error)

    def _find_program(self, error: Exception) -> list[str]:
        for program, arguments in _PLAYERS.items():
            path = shutil.which(program)
            if path is not None:
                return [path, *arguments.format(rate=self._rate).split()]
        raise UserError(
            "there is nothing to play sound with; pip install 'mlx-vits[play]', or install sox, "
            "or write a file with -o"
        ) from error

    def __enter__(self) -> Player:
        if self._stream is not None:
            self._stream.start()
        else:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self

    def write(self, wav: np.ndarray) -> None:
        """Play samples `(N,)` float32 after those before."""
        wav = np.clip(wav, -1.0, 1.0).astype(np.float32)
        if self._stream is not None:
            self._stream.write(wav[:, None])
            return
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((wav * 32767).astype("<i2").tobytes())
        except BrokenPipeError as error:
            program = self._command[0]
            raise UserError(f"{program}: stopped playing; write a file with -o instead") from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            if kind is None:
                self._stream.stop()  # once all is played
            self._stream.close()
        elif self._process is not None:
            assert self._process.stdin is not None
            if kind is not None:
                self._process.terminate()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
