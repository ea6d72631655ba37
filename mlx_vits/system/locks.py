"""Advisory locks that are released when their process ends, however it ends.

They use `flock`, so a lock file that a killed process leaves behind locks nobody out. On a file
system without locks, a `WriterLock` relies on the process id and start time in its file instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_vits.errors import UserError
from mlx_vits.system.faults import unwritable

LOCK_FILE = ".mlx_vits.lock"  # in the folder that is being written


class Held:
    """An open file or folder, locked exclusively.

    Args:
        path: what to open; a link is not followed.
        flags: of `os.open`.

    Attributes:
        fd: the file descriptor.
        is_locked: False if the file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, flags: int = os.O_RDONLY):
        while True:
            self.fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                self.is_locked = _lock(self.fd)
                # It may have been removed or replaced between the two calls.
                if os.path.samestat(os.fstat(self.fd), path.stat()):
                    return
            except FileNotFoundError:
                os.close(self.fd)
                if not flags & os.O_CREAT:
                    raise
            except OSError:
                os.close(self.fd)
                raise
            else:
                os.close(self.fd)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # NFS, FUSE and others may support no locks, or none on folders
        return False
    return True


class WriterLock:
    """A lock that makes this process the only writer of a folder.

    Args:
        folder: must exist.

    Attributes:
        folder: set this when the folder is renamed.

    Raises:
        UserError: another process, which is named, writes there; or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / LOCK_FILE
        try:
            self._held = Held(path, os.O_RDWR | os.O_CREAT)
        except BlockingIOError as error:
            raise _taken(folder, _read_holder(path)) from error
        except OSError as error:
            raise UserError(unwritable(folder, error)) from error
        try:
            holder = _read_holder(path)
            if not self._held.is_locked and _may_live(holder):
                raise _taken(folder, holder, f"; delete {path} if that one has ended")
            _write_holder(self._held.fd, path)
        except UserError:
            self._held.close()
            raise

    def release(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / LOCK_FILE).unlink(missing_ok=True)
        self._held.close()

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def check_is_free(folder: Path) -> None:
    """Check that no process writes into a folder, without changing anything in it.

    Raises:
        UserError: one does; it is named.
    """
    path = folder / LOCK_FILE
    try:
        with Held(path, os.O_RDWR) as held:
            holder = _read_holder(path)
            if not held.is_locked and _may_live(holder):
                raise _taken(folder, holder, f"; delete {path} if that one has ended")
    except BlockingIOError as error:
        raise _taken(folder, _read_holder(path)) from error
    except OSError:
        return


def _taken(folder: Path, holder: dict[str, Any], cure: str = "") -> UserError:
    who = f"process {holder['pid']} on {holder['host']}" if "pid" in holder else "another process"
    since = f" since {holder['since']}" if "since" in holder else ""
    return UserError(
        f"{folder}: {who} has been writing there{since}; wait for it, stop it, or choose another "
        f"folder{cure}"
    )


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict) or not {"pid", "host", "since", "started"} <= set(values):
        return {}
    return values


def _write_holder(fd: int, path: Path) -> None:
    pid = os.getpid()
    holder = {
        "pid": pid,
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "started": _start_of(pid),
    }
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(holder).encode(), 0)
    except OSError as error:
        raise UserError(unwritable(path, error)) from error


def _may_live(holder: dict[str, Any]) -> bool:
    """Tell whether the process named in a lock file may still run; on another host it may."""
    if not holder:
        return False
    if holder["host"] != socket.gethostname():
        return True
    started = _start_of(holder["pid"])
    return started != "" and started == holder["started"]


def _start_of(pid: Any) -> str:
    """Look up when a local process started, in the system's own format; "" if there is none."""
    if not isinstance(pid, int):
        return ""
    if Path("/proc/self/stat").exists():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            return ""
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()


@contextlib.contextmanager
def unheld(path: Path, unsure_seconds: float = 86400) -> Iterator[bool]:
    """Tell whether no living process has locked a file or folder, and lock it meanwhile.

    Args:
        path: a link is not followed.
        unsure_seconds: on a file system without locks, anything older counts as not locked.
    """
    try:
        held = Held(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        yield False
        return
    with held:
        age = time.time() - os.fstat(held.fd).st_mtime
        yield held.is_locked or age > unsure_seconds
