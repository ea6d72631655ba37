"""Files and folders that are written whole or not at all, and only where they belong.

A killed process may leave temporary files behind. Those carry names of ours and are held (see
`locks.py`) while their writer lives, so that `sweep` and `tidy` can tell which may go.
"""

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
from mlx_vits.system.locks import Held, unheld

_TEMPORARY = re.compile(r"\.mlx_vits-[0-9a-f]{16}\.tmp")
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
    errno.ENAMETOOLONG: "choose a shorter name",
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
        # Held until it has its name, lest another process sweeps it away.
        held = Held(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(held.fd, "wb") as file:
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


def unreadable(path: str | os.PathLike[str], error: OSError) -> str:
    """Return the sentence for a file or folder that the system refuses to read."""
    reason = error.strerror or type(error).__name__
    return f"{path}: cannot be read ({reason}); check its permissions and its disk"


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


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; one that is there already is kept.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(_describe(path, fault)) from fault


def remove_file(path: Path) -> None:
    """Remove a file; one that is not there is fine.

    Raises:
        UserError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as fault:
        raise UserError(f"{path}: cannot be removed ({fault.strerror}); take it away") from fault


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
    aside = _sibling(path, "old")
    try:
        before = contextlib.nullcontext() if path.is_symlink() else Held(path)
    except OSError as fault:
        raise UserError(_describe(path, fault)) from fault
    with before:  # lest another process takes it for a killed one's
        move_folder(path, aside)
        try:
            move_folder(new, path)
        except UserError:
            move_folder(aside, path)
            raise
        _discard(aside)


def _discard(folder: Path) -> None:
    """Delete what `tidy` could take for a folder set aside, under a name that says otherwise."""
    doomed = folder.with_suffix(".new")
    with contextlib.suppress(OSError):
        folder.rename(doomed)
        if doomed.is_symlink():
            doomed.unlink()
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside `path`, to be filled and then given that name.

    It is removed at the end, unless it was renamed. What killed processes left of theirs is put
    right first.

    Raises:
        UserError: it cannot be made.
    """
    tidy(path)
    while True:
        fresh = _sibling(path, "new")
        make_folder(fresh)
        try:
            held = Held(fresh)
        except (FileNotFoundError, BlockingIOError):  # another process tidied up just now
            continue
        except OSError as fault:
            raise UserError(_describe(fresh, fault)) from fault
        break
    with held:
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}.{kind}")


def tidy(path: Path) -> None:
    """Put right what killed processes left beside a folder while they made or replaced it.

    A folder that was set aside and whose successor is missing gets its name back. What a living
    process holds stays.
    """
    name = re.compile(re.escape(f".{path.name}-") + r"[0-9a-f]{8}\.(new|old)")
    with contextlib.suppress(OSError):
        for left in sorted(path.parent.iterdir()):
            match = name.fullmatch(left.name)
            if not match or not left.is_dir():
                continue
            with unheld(left) as is_free:
                if is_free and match[1] == "old" and not (path.exists() and any(path.iterdir())):
                    with contextlib.suppress(UserError):
                        move_folder(left, path)
                elif is_free:
                    _discard(left)


def sweep(folder: Path, *, below: bool = True) -> None:
    """Remove temporary files that killed processes left in a folder.

    Args:
        below: whether to look into the folders within, too; links are not followed.
    """
    for parent, folders, names in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, names):
            path = Path(parent, name)
            with unheld(path) as is_free, contextlib.suppress(OSError):
                if is_free:
                    path.unlink()
        if not below:
            folders.clear()


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


def inside(folder: Path, *names: str, error: type[UserError] = UserError) -> Path:
    """Return a path within a folder, if neither a name nor a link on it leads out of that folder.

    Raises:
        UserError: one does.
    """
    path = folder.joinpath(*names)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise error(
            f"{path}: leads out of {folder}, and nothing is written outside; put a folder there "
            "in place of the link or the path"
        )
    return path


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
