"""Fetch files of upstream's repository on the Hugging Face hub, with resume and checksums.

`huggingface_hub` (the optional extra `hub`) provides sessions, credentials and progress bars. The
body is received here, because its `http_get` decompresses responses that were not requested
compressed, and writes any number of bytes that a server sends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.checkpoints.torch_names import printable
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import make_folder
from mlx_vits.system.installing import package_command
from mlx_vits.version import __version__

REPOSITORY = "lj1995/GPT-SoVITS"
AGAIN = "run the same command again: it goes on where it stopped"
_ELSEWHERE = "check the proxy, or name another server in HF_ENDPOINT"
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_REASON_CHARS = 80
_TRIES, _PAUSE_SECONDS = 5, 1.0
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416
_MAX_TEXT_BYTES = 1 << 20
_MAX_BYTES = 2 << 30  # ten times the largest model
# Exceptions of requests and httpx for a bad redirect target.
_REDIRECT_FAULTS = ("UnsupportedProtocol", "InvalidSchema", "InvalidURL", "TooManyRedirects")


class Remote(NamedTuple):
    """A file on the hub.

    Attributes:
        revision: the repository's commit.
        path: in the repository.
        becomes: path in the base.
        size: in bytes, None if the server does not state it.
        sha256: hexadecimal, None if the server does not state it.
    """

    revision: str
    path: str
    becomes: str
    size: int | None
    sha256: str | None


class Fetched(NamedTuple):
    """A complete local file, with the SHA-256 of its bytes."""

    remote: Remote
    file: Path
    sha256: str


class Hub:
    """One revision of upstream's repository; all errors become a `CheckpointError`."""

    def __init__(self, revision: str):
        try:
            from huggingface_hub import constants, errors, file_download, utils
        except ImportError as error:
            raise CheckpointError(
                "huggingface_hub, which downloads need, is not installed; run "
                f"{package_command('huggingface_hub>=0.30')}"
            ) from error
        self._revision = revision
        self._errors: Any = errors
        self._requests: Any = file_download
        self._utils: Any = utils
        self._constants: Any = constants
        self._headers = utils.build_hf_headers(
            library_name="mlx_vits", library_version=__version__
        ) | {"Accept-Encoding": "identity"}
        # Read now, whereas the library reads it on import. None is the hub itself.
        self._endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        address = self._endpoint or "https://huggingface.co"
        self._server = _server_of(address)
        self._is_encrypted = urlsplit(address).scheme == "https"

    def describe(self, files: Mapping[str, str]) -> list[Remote]:
        """Request size and checksum of every file, all at the commit of the first."""
        remotes: list[Remote] = []
        for path, becomes in files.items():
            revision = remotes[0].revision if remotes else self._revision
            with self._user_errors(path):
                found = self._requests.get_hf_file_metadata(
                    self._url(path, revision), library_name="mlx_vits"
                )
            commit = found.commit_hash or ""
            if not _COMMIT.fullmatch(commit):
                raise CheckpointError(
                    f"{REPOSITORY}/{path}: {self._server} does not answer as the Hugging Face hub "
                    "does; check HF_ENDPOINT, the proxy, and whether this network asks for a login"
                )
            sha256 = found.etag if _SHA256.fullmatch(found.etag or "") else None
            if found.size is not None and not 0 <= found.size <= _size_limit(path):
                raise CheckpointError(
                    f"{REPOSITORY}/{path}: {self._server} announces {found.size:,} bytes, which no "
                    f"such file has; {_ELSEWHERE}"
                )
            remotes.append(Remote(commit, path, becomes, found.size, sha256))
        return remotes

    def _url(self, path: str, revision: str) -> str:
        address = self._requests.hf_hub_url
        return str(address(REPOSITORY, path, revision=revision, endpoint=self._endpoint))

    def fetch(self, remote: Remote, file: Path) -> Fetched:
        """Download what is missing of a file, and verify its checksum.

        A partial file is kept on errors; one with a wrong checksum is deleted.
        """
        sha256 = file_sha256(file) if file.is_file() else ""
        if not sha256 or remote.sha256 not in (None, sha256):
            make_folder(file.parent)
            partial = partial_of(file)
            with self._user_errors(remote.path, file):
                self._receive(remote, partial)
                partial.replace(file)
            sha256 = file_sha256(file)
        if remote.sha256 not in (None, sha256):
            file.unlink(missing_ok=True)
            raise CheckpointError(
                f"{REPOSITORY}/{remote.path}: arrived damaged, its SHA-256 is not the one that "
                f"{self._server} states, and was removed; run the same command again to fetch it "
                "anew"
            )
        return Fetched(remote._replace(size=file.stat().st_size), file, sha256)

    def _receive(self, remote: Remote, partial: Path) -> None:
        """Complete a partial file, resuming a broken connection a few times."""
        for _ in range(_TRIES):
            start = bytes_kept(remote, partial)
            if start == remote.size:
                return
            try:
                self._receive_once(remote, partial, start)
            except self._errors.HfHubHTTPError.__bases__[0] as error:
                is_answer = getattr(error, "response", None) is not None
                if is_answer or bytes_kept(remote, partial) <= start:
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                return
        raise self._fault(remote, f"was cut off {_TRIES} times; check the connection, then {AGAIN}")

    def _receive_once(self, remote: Remote, partial: Path, start: int) -> None:
        """Request the missing bytes once; never write more than announced.

        Raises:
            CheckpointError: the server sends something else, or another number of bytes.
        """
        max_bytes = remote.size if remote.size is not None else _size_limit(remote.path)
        headers = dict(self._headers) | ({"Range": f"bytes={start}-"} if start else {})
        with self._answer(self._url(remote.path, remote.revision), headers) as answer:
            if answer.status_code == _RANGE_NOT_SATISFIABLE:
                partial.unlink(missing_ok=True)  # the next call starts over
            self._utils.hf_raise_for_status(answer)
            self._check_answer(remote, answer)
            if answer.status_code != _PARTIAL_CONTENT:
                start = 0
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise self._fault(remote, f"comes in other parts than were asked for; {_ELSEWHERE}")
            stated = answer.headers.get("Content-Length", "")
            count = start
            if stated.isdecimal() and start + int(stated[:20]) > max_bytes:
                raise self._too_long(remote, max_bytes)
            bar = self._utils.tqdm(
                total=remote.size, initial=start, unit="B", unit_scale=True, desc=remote.path[-40:]
            )
            with partial.open("ab" if start else "wb") as output, bar:
                for chunk in _chunks(answer):
                    count += len(chunk)
                    if count > max_bytes:
                        output.truncate(0)  # nothing received is trustworthy
                        raise self._too_long(remote, max_bytes)
                    output.write(chunk)
                    bar.update(len(chunk))
        if remote.size is not None and count < remote.size:
            raise self._fault(
                remote,
                f"ended after {count:,} of {remote.size:,} bytes; wait a little, then {AGAIN}",
            )

    @contextlib.contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """Open a streaming response; requests and httpx do so differently."""
        session, timeout = self._utils.get_session(), self._constants.HF_HUB_DOWNLOAD_TIMEOUT
        options = {"headers": headers, "timeout": timeout}
        if hasattr(session, "stream") and callable(session.stream):
            opened = session.stream("GET", url, follow_redirects=True, **options)
        else:
            opened = session.get(url, stream=True, **options)
        with opened as answer:
            yield answer

    def _check_answer(self, remote: Remote, answer: Any) -> None:
        """Refuse a response that is not the file's bytes, before reading its body."""
        coding = answer.headers.get("Content-Encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise self._fault(
                remote,
                f"comes compressed ({printable(coding, 20)}), which was not asked for; "
                f"{_ELSEWHERE}",
            )
        if "html" in answer.headers.get("Content-Type", "").lower():
            raise self._fault(
                remote,
                "is answered with a web page; check HF_ENDPOINT, the proxy, and whether this "
                "network asks for a login",
            )
        scheme = urlsplit(str(answer.url)).scheme
        if scheme != "https" and self._is_encrypted:
            raise self._fault(remote, f"is redirected to {scheme} without encryption; {_ELSEWHERE}")
        if answer.status_code not in (200, _PARTIAL_CONTENT):
            raise self._fault(
                remote, f"gets an answer without a file ({answer.status_code}); {_ELSEWHERE}"
            )

    def _too_long(self, remote: Remote, max_bytes: int) -> CheckpointError:
        return self._fault(
            remote, f"is longer than the {max_bytes:,} bytes that it may have; {_ELSEWHERE}"
        )

    def _fault(self, remote: Remote, words: str) -> CheckpointError:
        return CheckpointError(f"{REPOSITORY}/{remote.path}: from {self._server}, {words}")

    @contextlib.contextmanager
    def _user_errors(self, path: str, file: Path | None = None) -> Iterator[None]:
        """Turn errors of the library, the network or the disk into a `CheckpointError`."""
        # The transport is requests, httpx or httpx2, by version, with exceptions of its own.
        transport = self._errors.HfHubHTTPError.__bases__
        try:
            yield
        except (OSError, self._errors.EntryNotFoundError, *transport) as error:
            is_network = isinstance(error, (ConnectionError, TimeoutError, *transport[:1]))
            if isinstance(error, OSError) and error.errno and file and not is_network:
                is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                cure = "free some space" if is_full else "check its disk and who may write there"
                raise CheckpointError(
                    f"{file}: cannot be written ({error.strerror}); {cure}, then {AGAIN}"
                ) from error
            raise CheckpointError(f"{REPOSITORY}/{path}: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        """Describe what went wrong with the server, and the cure."""
        errors, server = self._errors, self._server
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return f"cannot be fetched in offline mode; unset HF_HUB_OFFLINE, then {AGAIN}"
        if isinstance(error, errors.RevisionNotFoundError):
            return (
                f"{server} knows no revision {self._revision!r} of it; leave --revision out, or "
                "name a branch, tag or commit"
            )
        if status in (401, 403):
            return (
                f"{server} refuses access ({status}); renew or remove the token that this machine "
                f"sends (HF_TOKEN, or `hf auth login`), then {AGAIN}"
            )
        if isinstance(error, errors.EntryNotFoundError) or status in (404, 410):
            return (
                f"{server} has no such file at revision {self._revision!r}; name an older one with "
                "--revision, or check HF_ENDPOINT"
            )
        if status == 429:
            return (
                f"{server} is asked too often from here (429); wait some minutes, or send a token "
                f"(HF_TOKEN, or `hf auth login`), then {AGAIN}"
            )
        if status is not None:
            return f"{server} answers with an error ({status}); wait a little, then {AGAIN}"
        lines = str(error).splitlines()
        is_short = bool(lines) and len(lines[0]) <= _MAX_REASON_CHARS
        reason = lines[0].rstrip(".") if is_short else type(error).__name__
        if type(error).__name__ in _REDIRECT_FAULTS:
            return f"{server} redirects to where nothing can be fetched ({reason}); {_ELSEWHERE}"
        return (
            f"cannot be fetched from {server} ({reason}); check the connection, or name a mirror "
            f"in HF_ENDPOINT, then {AGAIN}"
        )


def _server_of(endpoint: str) -> str:
    """Return host and port of a URL, without credentials."""
    with contextlib.suppress(ValueError):
        address = urlsplit(endpoint)
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return address.netloc.rpartition("@")[2]
    raise CheckpointError(
        f"HF_ENDPOINT is {endpoint!r}, which is no address; unset it, or write it like "
        "https://huggingface.co"
    )


def _size_limit(path: str) -> int:
    return _MAX_TEXT_BYTES if path.endswith(".json") else _MAX_BYTES


def _chunks(answer: Any) -> Iterator[bytes]:
    """Yield the body in chunks; it is already known to be uncompressed."""
    chunks: Iterator[bytes]
    is_httpx = hasattr(answer, "iter_bytes")
    chunks = answer.iter_bytes() if is_httpx else answer.iter_content(1 << 16)
    return chunks


def partial_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.incomplete")


def bytes_kept(remote: Remote, partial: Path) -> int:
    """Return the size of a partial file to resume, 0 if it cannot be resumed."""
    have = partial.stat().st_size if partial.is_file() else 0
    return have if remote.size is not None and have <= remote.size else 0
