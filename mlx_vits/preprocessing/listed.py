"""Match the names in a list to recordings: names differ by system, by program and by hand.

Tried in order: the exact name, Unicode NFC (macOS writes NFD), and case-insensitive NFC; each with
and without the suffix. The first to match exactly one recording wins. A match is always one of the
folder's own recordings, whatever path the list gives.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath


def _exact(name: str) -> str:
    return name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _composed(_composed(name).casefold())


def _loose(path: str) -> str:
    """Reduce to letters and numbers: `Clip_01.wav` and `clip 1.mp3` become equal."""
    return re.sub(r"0+(?=\d)", "", re.sub(r"[\W_]+", " ", _caseless(_stem(path)))).strip()


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


_FORMS: tuple[Callable[[str], str], ...] = (_exact, _composed, _caseless)


class Recordings:
    """The recordings of a folder, looked up by the names that lists give them.

    Args:
        names: relative to the folder, with `/`.
    """

    def __init__(self, names: Iterable[str]):
        self._paths = list(names)
        self._is_flat = len({PurePosixPath(path).parent for path in self._paths}) <= 1
        # In the order of lookup: for each form, by name, then by name without suffix.
        self._indexes = [
            (form, _index(self._paths, form, part)) for form in _FORMS for part in (_name, _stem)
        ]
        self._alike = _index(self._paths, _loose, _name)
        self._known = set(self._paths)

    def find(self, listed: str) -> str | None:
        """Return the recording that a list entry means, None if there is none.

        Args:
            listed: name or path, with `/`. The folder part is ignored if all recordings share one
                folder; otherwise it has to match.
        """
        if listed in self._known:
            return listed
        last = _name(listed)
        for form, index in self._indexes:
            found = index.get(form(last), [])
            if not self._is_flat:
                shared = {path: _shared_folders(path, listed) for path in found}
                most = max(shared.values(), default=0)
                found = [path for path in found if shared[path] == most >= 0]
            if len(found) == 1:
                return found[0]
        return None

    def similar(self, listed: str) -> str | None:
        """Return a recording with nearly the listed name, for messages."""
        return next(iter(self._alike.get(_loose(listed), [])), None)


def _index(
    paths: Iterable[str], form: Callable[[str], str], part: Callable[[str], str]
) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for path in paths:
        index.setdefault(form(part(path)), []).append(path)
    return index


def _shared_folders(path: str, listed: str) -> int:
    """Count the trailing folders that two paths share, -1 if any differs."""
    ours, theirs = (PurePosixPath(_caseless(each)).parts[-2::-1] for each in (path, listed))
    pairs = list(zip(ours, theirs, strict=False))
    return len(pairs) if all(a == b for a, b in pairs) else -1
