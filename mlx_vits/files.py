"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mlx_vits.errors import UserError

_NO_NAME = re.compile(r"\.{0,2}|.*[/\x00-\x1f\x7f].*", re.DOTALL)
_LONGEST_NAME = 230  # bytes: file systems allow 255, and endings are added
_LONGEST_SHOWN = 40
LARGEST_BYTES = 64 << 20  # of a text or JSON file

_CURES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EFBIG: "write where larger files are allowed",
    errno.ENOENT: "make the folder first or write elsewhere",
    errno.ENOTDIR: "make the folder first or write elsewhere",
    errno.EISDIR: "name a file, not a folder",
}


def _describe(path: Path, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    cure = _CURES.get(error.errno or 0, "write elsewhere")
    return f"{path}: cannot be written ({reason}); {cure}"


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], *, error: type[UserError] = UserError
) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name only when it is complete.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then
    takes the name. If anything is raised before that, the temporary file is removed and whatever
    was at `path` stays as it was.

    Args:
        path: the file to write; its folder must exist.
        error: the kind of `UserError` to raise.

    Yields:
        A binary file, open for writing, that can seek.

    Raises:
        UserError: the file cannot be written; one sentence with the path, the reason and the cure.
    """
    path = Path(path)
    temporary = path.parent / f".mlx_vits-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as fault:
        # The body may also have failed to open a file of its own; that error names the file, while
        # those of our writes carry no name.
        if fault.filename is not None and Path(fault.filename) != temporary:
            raise
        raise error(_describe(path, fault)) from fault
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """Read a text or JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, no regular file, or has an impossible name.
    """
    if not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError("there is no such file")
    with path.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES >> 20} MB")
    return content


def read_utf8(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark, of any system's line ends.

    Raises:
        OSError, ValueError: as `read_bytes`, or it is not UTF-8.
    """
    return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; one that is there already is kept.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(_describe(path, fault)) from fault


def move_folder(folder: Path, to: Path) -> None:
    """Gives a folder another name on the same disk; an empty folder of that name is replaced.

    Raises:
        UserError: it cannot be done; both are as they were.
    """
    try:
        if to.is_dir() and not any(to.iterdir()):
            to.rmdir()
        folder.rename(to)
    except OSError as fault:
        raise UserError(_describe(to, fault)) from fault


def replace_folder(new: Path, path: Path) -> None:
    """Gives a finished folder its name; what was there before goes only when that is done.

    Raises:
        UserError: it cannot be done; what was there before still is.
    """
    if not path.exists():
        move_folder(new, path)
        return
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}.old")
    move_folder(path, aside)
    try:
        move_folder(new, path)
    except UserError:
        move_folder(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def temporary_sibling(path: Path) -> Path:
    """A name beside `path`, hidden and not taken, to make something whole under."""
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}.new")


def single_name(name: str, where: str, error: type[UserError] = UserError) -> str:
    """Return a name that is to become part of a path, if it cannot lead anywhere else.

    Args:
        name: from a file or the command line.
        where: it comes from, for the message.
        error: the kind of `UserError` to raise.

    Raises:
        UserError: it is empty, has several components, or is no text of bearable length.
    """
    try:
        is_short = len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:  # bytes of a file's name that are not UTF-8
        is_short = False
    if not is_short or _NO_NAME.fullmatch(name):
        shown = name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."
        raise error(
            f"{where}: {shown!r} is not a plain name; choose one in UTF-8 without `/` and control "
            f"characters, of {_LONGEST_NAME} bytes at most"
        )
    return name


def given_path(path: str | os.PathLike[str], error: type[UserError] = UserError) -> Path:
    """Return a path that a user gave, with `~` expanded, whether or not anything is there.

    Raises:
        UserError: it cannot be looked at: its name is too long or not UTF-8, a link on it leads in
            a circle, a folder on it is closed, or `~NAME` is nobody.
    """
    try:
        found = Path(path).expanduser()
        str(found).encode()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.stat()
    except UnicodeEncodeError as fault:
        raise error(f"{path}: has a name that is not UTF-8; rename it") from fault
    except (OSError, RuntimeError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be looked at ({reason}); check the path") from fault
    return found
