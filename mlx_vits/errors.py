"""The one exception that a user's mistake raises.

Command lines print its message, one sentence that names the file and the cure, and exit with
status 1. Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import signal

_LONGEST = 500
_KEPT_AT_END = 100  # the cure


class UserError(Exception):
    """Something the user gave cannot be used; the message says what, where and what to do."""

    def __str__(self) -> str:
        """One line of bearable length, whatever a file's names and values put into it."""
        line = "".join(c if c.isprintable() else "?" for c in super().__str__())
        if len(line) <= _LONGEST:
            return line
        return f"{line[: _LONGEST - _KEPT_AT_END]} ... {line[-_KEPT_AT_END:]}"


class CheckpointError(UserError):
    """A model file cannot be read, or does not fit the model it is loaded into."""


class DataError(UserError):
    """A recording, a transcript or a prepared folder cannot be used."""


class TrainingStopped(UserError):
    """Training ended itself: a loss stopped being a number, or the voice fell silent.

    Attributes:
        step: the update after which it did.
    """

    def __init__(self, cause: str, step: int):
        super().__init__(f"{cause} at step {step}")
        self.cause, self.step = cause, step


class Interrupted(KeyboardInterrupt):
    """A signal asks the program to end: Ctrl-C, or SIGTERM or SIGHUP.

    Attributes:
        number: the signal's.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT):
        super().__init__(message)
        self.number = number
