"""Sentences for what a disk or a folder's permissions refuse: the path, the reason, the cure."""

from __future__ import annotations

import errno
from pathlib import Path

_CURES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EFBIG: "write where larger files are allowed",
    errno.ENOENT: "make the folder first or write elsewhere",
    errno.ENOTDIR: "make the folder first or write elsewhere",
    errno.EISDIR: "name a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def unwritable(path: Path, error: OSError) -> str:
    """Say that a file or folder cannot be written, why, and what helps."""
    reason = error.strerror or type(error).__name__
    cure = _CURES.get(error.errno or 0, "write elsewhere")
    return f"{path}: cannot be written ({reason}); {cure}"


def unreadable(path: Path, error: OSError) -> str:
    """Say that a file or folder cannot be read, why, and what helps."""
    reason = error.strerror or type(error).__name__
    return f"{path}: cannot be read ({reason}); check its permissions, or give another one"
