"""Work that is not done twice: finished clips of an interrupted or an earlier preparation.

A clip's files are named in the journal after they are written, together with a key of everything
they were made from. A clip whose key is found again, here or in an older prepared folder, is taken
over; a file that is not in a journal does not count, whole or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.system.faults import unwritable
from mlx_vits.system.files import (
    atomic_write,
    inside,
    make_folder,
    read_bytes,
    remove_file,
    single_name,
)
from mlx_vits.system.json_files import parse_json

JOURNAL = "journal.jsonl"
_FORMAT = "1"  # of what is made of a recording


def audio_key(recording_sha256: str, *made_with: str) -> str:
    """Of a clip's recording, features and speaker vector.

    Args:
        recording_sha256: of the source's bytes.
        made_with: digests of the nets, and whatever else decides the result.
    """
    return hashlib.sha256(" ".join((_FORMAT, recording_sha256, *made_with)).encode()).hexdigest()


@dataclass(frozen=True)
class _Entry:
    """A clip's key, and its files relative to the folder."""

    key: str
    files: tuple[str, ...]


class Journal:
    """What has been made in a folder, and where else the same was made before.

    Args:
        folder: that is being filled.
        earlier: prepared folders that clips may be taken from.
    """

    def __init__(self, folder: Path, earlier: Sequence[Path] = ()):
        self.folder = folder
        self._found: dict[str, list[Path]] = {}
        for line in _read_lines(folder / JOURNAL):
            # A line that an interruption cut short costs the work of a clip.
            with contextlib.suppress(DataError):
                entry = parse_json(line, _Entry, JOURNAL, error=DataError, cure="")
                for step in "/".join(entry.files).split("/"):
                    single_name(step, JOURNAL, DataError)
                files = [inside(folder, file, error=DataError) for file in entry.files]
                self._found[entry.key] = files
        for other in earlier:
            manifest = layout.read_manifest(other)
            for clip in manifest.sources if manifest else ():
                part = other / layout.HELD_OUT_FOLDER if clip.held_out else other
                self._found.setdefault(clip.key, layout.clip_files(part, clip.name))

    def take(self, key: str, wanted: Sequence[Path]) -> bool:
        """Puts a clip's files in place, if the same were all made before.

        Args:
            key: from `audio_key`.
            wanted: where they belong, `self.folder` or a folder below.
        """
        found = {path.parent.name: path for path in self._found.get(key, []) if path.is_file()}
        if not {path.parent.name for path in wanted} <= set(found):
            return False
        for path in wanted:
            _link(found[path.parent.name], path)
        self.note(key, wanted)
        return True

    def note(self, key: str, files: Sequence[Path]) -> None:
        """Records that a clip's files are whole.

        Raises:
            UserError: the journal cannot be written.
        """
        names = [str(path.relative_to(self.folder)) for path in files if path.is_file()]
        line = json.dumps({"key": key, "files": names}).encode() + b"\n"
        try:
            with (self.folder / JOURNAL).open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    # The line before was cut short: this one begins anew.
                    line = line if file.read(1) == b"\n" else b"\n" + line
                file.write(line)
        except OSError as error:
            raise UserError(unwritable(self.folder / JOURNAL, error)) from error
        self._found[key] = [self.folder / name for name in names]

    def close(self) -> None:
        """Takes the journal away: the manifest says the same from now on."""
        (self.folder / JOURNAL).unlink(missing_ok=True)

    @property
    def is_empty(self) -> bool:
        return not (self.folder / JOURNAL).is_file()


def _read_lines(path: Path) -> list[bytes]:
    with contextlib.suppress(OSError, ValueError):
        return read_bytes(path).splitlines()
    return []


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk has no such thing."""
    if target.exists() and target.samefile(source):
        return
    make_folder(target.parent)
    remove_file(target)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as old, atomic_write(target) as new:
            shutil.copyfileobj(old, new)
