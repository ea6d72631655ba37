"""Sound played while it is being made."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from types import TracebackType
from typing import IO, Any

import numpy as np

from mlx_vits.errors import UserError
from mlx_vits.system.installing import install_command

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
        self._stream: Any = None
        self._faults: tuple[type[Exception], ...] = (OSError,)
        try:
            import sounddevice  # type: ignore[import-not-found,import-untyped,unused-ignore]

            self._faults = (OSError, sounddevice.PortAudioError)
        except (ImportError, OSError):  # PortAudio itself may be missing
            self._command = self._find_program()
            return
        try:
            self._stream = sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32")
        except self._faults:  # such as no device
            self._command = self._find_program()

    def _find_program(self) -> list[str]:
        for program, arguments in _PLAYERS.items():
            path = shutil.which(program)
            if path is not None:
                return [path, *arguments.format(rate=self._rate).split()]
        raise UserError(
            f"there is nothing to play sound with; run {install_command('play')}, or install sox, "
            "or write a file with -o"
        )

    def __enter__(self) -> Player:
        try:
            if self._stream is not None:
                self._stream.start()
            else:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
        except self._faults as error:
            raise self._stopped() from error
        return self

    def write(self, wav: np.ndarray) -> None:
        """Play samples `(N,)` float32 after those before.

        Raises:
            UserError: the program or the device has gone.
        """
        wav = np.clip(wav, -1.0, 1.0).astype(np.float32)
        try:
            if self._stream is not None:
                self._stream.write(wav[:, None])
            else:
                self._input().write(np.round(wav * 32767).astype("<i2").tobytes())
        except self._faults as error:
            raise self._stopped() from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._end()

    def _finish(self) -> None:
        """Wait until all is played."""
        try:
            if self._stream is not None:
                self._stream.stop()
            elif self._process is not None:
                self._input().close()
                if self._process.wait() != 0:
                    raise self._stopped()
        except self._faults as error:
            raise self._stopped() from error

    def _end(self) -> None:
        """Fall silent."""
        if self._stream is not None:
            self._stream.close()
        elif self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):
                self._input().close()
            self._process.wait()

    def _input(self) -> IO[bytes]:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin

    def _stopped(self) -> UserError:
        name = "sounddevice" if self._stream is not None else self._command[0]
        return UserError(f"{name}: cannot play, or has stopped; write a file with -o instead")
