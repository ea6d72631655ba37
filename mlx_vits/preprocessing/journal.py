"""Reuse finished clips of an interrupted or an earlier preparation.

After a clip's files are written, the journal records them with a key of everything they were made
from. A clip whose key is found here or in an older prepared folder is reused; a file that no
journal names is ignored, complete or not.
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
_FORMAT = "1"  # version of what is derived from a recording


def audio_key(recording_sha256: str, *made_with: str) -> str:
    """Return the key of a clip's audio, features and speaker vector.

    Args:
        recording_sha256: of the source's bytes.
        made_with: digests of the models, and whatever else determines the result.
    """
    return hashlib.sha256(" ".join((_FORMAT, recording_sha256, *made_with)).encode()).hexdigest()


@dataclass(frozen=True)
class _Entry:
    """A clip's key, and its files relative to the folder."""

    key: str
    files: tuple[str, ...]


class Journal:
    """Finished clips of a folder, and of earlier folders to reuse.

    Args:
        folder: the one being filled.
        earlier: prepared folders whose clips may be reused.
    """

    def __init__(self, folder: Path, earlier: Sequence[Path] = ()):
        self.folder = folder
        self._found: dict[str, list[Path]] = {}
        for line in _read_lines(folder / JOURNAL):
            # A line truncated by an interruption costs one clip's work.
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
        """Put a clip's files in place if all of them were made before.

        Args:
            key: from `audio_key`.
            wanted: their destinations, in `self.folder` or below.

        Returns:
            Whether they were.
        """
        found = {path.parent.name: path for path in self._found.get(key, []) if path.is_file()}
        if not {path.parent.name for path in wanted} <= set(found):
            return False
        for path in wanted:
            _link(found[path.parent.name], path)
        self.note(key, wanted)
        return True

    def note(self, key: str, files: Sequence[Path]) -> None:
        """Record that a clip's files are complete.

        Raises:
            UserError: the journal cannot be written.
        """
        names = [str(path.relative_to(self.folder)) for path in files if path.is_file()]
        line = json.dumps({"key": key, "files": names}).encode() + b"\n"
        try:
            with (self.folder / JOURNAL).open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    # The previous line was truncated: start a new one.
                    line = line if file.read(1) == b"\n" else b"\n" + line
                file.write(line)
        except OSError as error:
            raise UserError(unwritable(self.folder / JOURNAL, error)) from error
        self._found[key] = [self.folder / name for name in names]

    def close(self) -> None:
        """Delete the journal, once the manifest holds the same facts."""
        (self.folder / JOURNAL).unlink(missing_ok=True)

    @property
    def is_empty(self) -> bool:
        return not (self.folder / JOURNAL).is_file()


def _read_lines(path: Path) -> list[bytes]:
    with contextlib.suppress(OSError, ValueError):
        return read_bytes(path).splitlines()
    return []


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system has no hard links."""
    if target.exists() and target.samefile(source):
        return
    make_folder(target.parent)
    remove_file(target)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as old, atomic_write(target) as new:
            shutil.copyfileobj(old, new)
