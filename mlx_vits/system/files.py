"""Atomic writes of files and folders, confined to where they belong.

A killed process may leave temporary files behind. They have recognisable names and are locked (see
`locks.py`) while their writer lives, so that `sweep` and `tidy` know which may be removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mlx_vits.errors import UserError
from mlx_vits.system.faults import unreadable, unwritable
from mlx_vits.system.locks import Held, unheld

_TEMPORARY = re.compile(r"\.mlx_vits-[0-9a-f]{16}\.tmp")
_NO_NAME = re.compile(r"\.{0,2}|.*[/\x00-\x1f\x7f].*", re.DOTALL)
_LONGEST_NAME = 230  # bytes: file systems allow 255, and endings are added
_LONGEST_SHOWN = 40
LARGEST_BYTES = 64 << 20  # of a text or JSON file


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], *, error: type[UserError] = UserError
) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    The bytes go to a temporary file in the same folder, which is flushed to disk and then renamed.
    If anything is raised before that, the temporary file is removed and whatever was at `path`
    stays as it was.

    Args:
        path: the file to write; its folder must exist.
        error: the kind of `UserError` to raise.

    Yields:
        A binary file, open for writing, that can seek.

    Raises:
        UserError: the file cannot be written; one sentence with the path, the reason and the cure.
    """
    path = Path(path)
    temporary = temporary_path(path.parent)
    try:
        # Locked until it is renamed, lest another process sweeps it away.
        held = Held(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(held.fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as fault:
        # The body may also have failed to open a file of its own. Such an error names the file;
        # those of our writes name none.
        if fault.filename is not None and Path(fault.filename) != temporary:
            raise
        raise error(unwritable(path, fault)) from fault
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


def list_folder(folder: Path, error: type[UserError] = UserError) -> list[Path]:
    """List what a folder holds, in order of names.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as fault:
        raise error(unreadable(folder, fault)) from fault


def make_folder(path: Path) -> None:
    """Make a folder and its parents; an existing one is kept.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(unwritable(path, fault)) from fault


def remove_file(path: Path) -> None:
    """Remove a file if it exists.

    Raises:
        UserError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as fault:
        raise UserError(f"{path}: cannot be removed ({fault.strerror}); take it away") from fault


def move_folder(folder: Path, to: Path) -> None:
    """Rename a folder on the same disk; an empty folder of that name is replaced.

    Raises:
        UserError: it cannot be done; both are as they were.
    """
    try:
        if to.is_dir() and not any(to.iterdir()):
            to.rmdir()
        folder.rename(to)
    except OSError as fault:
        raise UserError(unwritable(to, fault)) from fault


def replace_folder(new: Path, path: Path) -> None:
    """Rename a finished folder to `path`; what was there before is deleted only afterwards.

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
        raise UserError(unwritable(path, fault)) from fault
    with before:  # lest another process takes it for a left-over
        move_folder(path, aside)
        try:
            move_folder(new, path)
        except UserError:
            move_folder(aside, path)
            raise
        _discard(aside)


def _discard(folder: Path) -> None:
    """Delete a folder under a name that `tidy` does not take for one set aside."""
    doomed = folder.with_suffix(".new")
    with contextlib.suppress(OSError):
        folder.rename(doomed)
        if doomed.is_symlink():
            doomed.unlink()
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside `path`, to be filled and then renamed to it.

    It is removed at the end unless it was renamed. Left-overs of killed processes are tidied up
    first.

    Raises:
        UserError: it cannot be made.
    """
    tidy(path)
    while True:
        fresh = _sibling(path, "new")
        make_folder(fresh)
        try:
            held = Held(fresh)
        except (FileNotFoundError, BlockingIOError):  # another process has just tidied up
            continue
        except OSError as fault:
            raise UserError(unwritable(fresh, fault)) from fault
        break
    with held:
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}.{kind}")


def tidy(path: Path) -> None:
    """Clean up what killed processes left beside a folder while making or replacing it.

    A folder that was set aside gets its name back if its successor is missing. What a living
    process has locked stays.
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


def temporary_path(folder: Path) -> Path:
    """Return a name in a folder for a file that is being written, which `sweep` knows."""
    return folder / f".mlx_vits-{secrets.token_hex(8)}.tmp"


def sweep(folder: Path, *, below: bool = True) -> None:
    """Remove temporary files that killed processes left in a folder.

    Args:
        below: whether to descend into sub-folders; links are not followed.
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
    """Check a name that becomes part of a path, so that it cannot lead elsewhere.

    Args:
        name: from a file or the command line.
        where: its origin, for the message.
        error: the kind of `UserError` to raise.

    Raises:
        UserError: it is empty, too long, not UTF-8, or has several components.
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
    """Join names to a folder, and check that neither they nor a link lead out of it.

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
    """Expand `~` in a path from a user, whether or not the path exists.

    Raises:
        UserError: it cannot be inspected: its name is too long or not UTF-8, a link on it is
            circular, a folder on it is not readable, or `~NAME` does not exist.
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
