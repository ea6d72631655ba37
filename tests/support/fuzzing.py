"""Fuzzing: a damaged, lying or absurd file loads or is refused in one sentence, and nothing else.

    python -m tests.support.fuzzing --cases 100000 --seed 1 [--kinds directory tensor]

A case is drawn from (seed, kind, number) alone, so that a fault can be looked at again: `--first N
--cases 1`. What a case must not do: raise anything but a `UserError`, warn, run or open
anything (Python's audit events are watched), or take much memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mlx_vits  # noqa: F401  (chooses the BLAS before mlx is imported)
from mlx_vits.errors import UserError

LONGEST_MESSAGE = 600
MOST_BYTES = 256 << 20
_HARMLESS_EVENTS = ("object.", "sys._getframe", "gc.", "array.", "mmap.", "builtins.id")

_LOOKING = ("open", "os.scandir", "os.listdir", "pathlib.Path.glob")


class Fault(Exception):
    """What a file must not be able to do."""


def _out_of_patience(number: int, frame: Any) -> None:
    raise Fault("it did not end")


class Watch:
    """Notes the audit events of a block: a reader may look into one folder, and no more."""

    def __init__(self) -> None:
        "".encode("cp437")  # what a zip's names are in; imported at first use
        self.folder = ""
        self.events: list[str] = []
        self._is_on = False
        sys.addaudithook(self._note)  # for good: Python has no way to take one away

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on or event.startswith(_HARMLESS_EVENTS):
            return
        if event in _LOOKING and str(arguments[0]).startswith(self.folder):
            return
        self.events.append(f"{event}{arguments!r:.200}")

    @contextmanager
    def over(self, path: Path) -> Iterator[None]:
        self.folder, self.events, self._is_on = str(path.parent), [], True
        try:
            yield
        finally:
            self._is_on = False


def peak_bytes() -> int:
    unit = 1024 if sys.platform.startswith("linux") else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_sentence(path: Path, message: str) -> None:
    """One line that can be printed anywhere, and begins with the file or one beside it."""
    if not message.startswith(f"{path.parent}{os.sep}"):
        raise Fault(f"the message does not name the file: {message!r:.300}")
    if not message.isprintable():
        raise Fault(f"the message is not one printable line: {message!r:.300}")
    if len(message) > LONGEST_MESSAGE + len(str(path)):
        raise Fault(f"the message has {len(message)} characters: {message!r:.300}")


_WATCHES: list[Watch] = []


def attempt(path: Path, read: Callable[[Path], Any]) -> Any:
    """Reads a file; gives what it holds, or None where it was refused.

    Raises:
        Fault: it did something else.
    """
    if not _WATCHES:
        _WATCHES.append(Watch())
    watch, before, found = _WATCHES[0], peak_bytes(), None
    with watch.over(path), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = read(path)
        except UserError as error:
            check_sentence(path, str(error))
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error!s:.300}") from error
    if watch.events:
        raise Fault(f"it touched {watch.events[:5]}")
    if peak_bytes() - before > MOST_BYTES:
        raise Fault(f"it took {peak_bytes() - before >> 20} MB")
    return found


@dataclass
class Tally:
    """What became of the cases of a kind."""

    cases: int = 0
    loaded: int = 0
    longest_s: float = 0.0
    slowest: int = -1
    faults: list[str] = field(default_factory=list)


# Writes the case's file and gives the reader, which may raise `Fault` as well.
Kind = Callable[[Path, np.random.Generator], Callable[[Path], Any]]


def fuzz(
    kinds: dict[str, Kind],
    folder: Path,
    cases: int,
    *,
    seed: int,
    first: int = 0,
    patience_s: int = 0,
) -> dict[str, Tally]:
    """Runs that many cases of every kind; one that takes longer than `patience_s` is a fault."""
    if patience_s:
        signal.signal(signal.SIGALRM, _out_of_patience)
    tallies = {name: Tally() for name in kinds}
    for number in range(first, first + cases):
        for name, make in kinds.items():
            draw = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
            tally, path = tallies[name], folder / "case.pth"
            read = make(path, draw)
            started = time.perf_counter()
            signal.alarm(patience_s)
            try:
                tally.loaded += attempt(path, read) is not None
            except Fault as fault:
                tally.faults.append(f"{name}, seed {seed}, case {number}: {fault}")
            signal.alarm(0)
            seconds = time.perf_counter() - started
            if seconds > tally.longest_s:
                tally.longest_s, tally.slowest = seconds, number
            tally.cases += 1
    return tallies


def faults_of(tallies: dict[str, Tally]) -> list[str]:
    return [fault for tally in tallies.values() for fault in tally.faults]


def main() -> None:
    """Runs the cases and prints what became of them."""
    from tests.support.fuzz_archives import ARCHIVE_KINDS
    from tests.support.fuzz_audio import AUDIO_KINDS
    from tests.support.fuzz_contents import CONTENT_KINDS
    from tests.support.fuzz_json import JSON_KINDS

    kinds: dict[str, Kind] = ARCHIVE_KINDS | CONTENT_KINDS | AUDIO_KINDS | JSON_KINDS
    parser = argparse.ArgumentParser(description="Fuzzes the readers of files.")
    parser.add_argument("--cases", type=int, default=1000, help="of every kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(kinds), choices=list(kinds))
    options = parser.parse_args()
    before = peak_bytes()
    with tempfile.TemporaryDirectory(prefix="mlx_vits_fuzz_") as folder:
        os.chdir(folder)
        chosen = {name: kinds[name] for name in options.kinds}
        tallies = fuzz(chosen, Path(folder), options.cases, seed=options.seed, first=options.first)
        left = sorted(path.name for path in Path(folder).iterdir())
    for name, tally in tallies.items():
        print(
            f"{name:24}{tally.cases:>9} cases{tally.loaded:>9} loaded{len(tally.faults):>7} faults"
            f"{tally.longest_s:>9.2f} s at most (case {tally.slowest})"
        )
        for fault in tally.faults[:20]:
            print(f"    {fault}")
    print(f"peak memory rose by {peak_bytes() - before >> 20} MB; left in the folder: {left}")
    sys.exit(1 if faults_of(tallies) else 0)


if __name__ == "__main__":
    main()
