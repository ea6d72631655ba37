"""One file of upstream's repository on the Hugging Face hub: asked for, received, compared.

Sessions, credentials and progress bars are `huggingface_hub`'s (the optional extra `hub`). The
bytes are received here, because its own `http_get` unpacks an answer that is compressed without
having been asked for, and writes as much as a server cares to send.
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
from mlx_vits.version import __version__

REPOSITORY = "lj1995/GPT-SoVITS"
AGAIN = "run the same command again: it goes on where it stopped"
_ELSEWHERE = "check the proxy, or name another server in HF_ENDPOINT"
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_REASON = 80
_TRIES, _PAUSE_SECONDS = 5, 1.0
_PARTIAL_CONTENT, _NO_SUCH_RANGE = 206, 416
_MOST_TEXT_BYTES = 1 << 20
_MOST_BYTES = 2 << 30  # ten times the largest model
# What requests and httpx raise for an address to which a server has sent them.
_REDIRECT_FAULTS = ("UnsupportedProtocol", "InvalidSchema", "InvalidURL", "TooManyRedirects")


class Remote(NamedTuple):
    """A file as the hub describes it.

    Attributes:
        revision: the repository's commit.
        path: within the repository.
        becomes: its place in the base.
        size: in bytes, None where the server does not say.
        sha256: hexadecimal, None where the server does not say.
    """

    revision: str
    path: str
    becomes: str
    size: int | None
    sha256: str | None


class Fetched(NamedTuple):
    """A whole file on this disk, with the SHA-256 of its bytes."""

    remote: Remote
    file: Path
    sha256: str


class Hub:
    """One revision of upstream's repository; every fault is a sentence."""

    def __init__(self, revision: str):
        try:
            from huggingface_hub import constants, errors, file_download, utils
        except ImportError as error:
            raise CheckpointError(
                "huggingface_hub, which downloads need, is not installed; run "
                "`pip install 'huggingface_hub>=0.30'`"
            ) from error
        self._revision = revision
        self._errors: Any = errors
        self._requests: Any = file_download
        self._utils: Any = utils
        self._constants: Any = constants
        self._headers = utils.build_hf_headers(
            library_name="mlx_vits", library_version=__version__
        ) | {"Accept-Encoding": "identity"}
        # Read here, not when the library is imported. None stands for the hub itself.
        self._endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        address = self._endpoint or "https://huggingface.co"
        self._server = _server_of(address)
        self._is_encrypted = urlsplit(address).scheme == "https"

    def describe(self, files: Mapping[str, str]) -> list[Remote]:
        """Asks for size and checksum of every file, all at the commit of the first."""
        remotes: list[Remote] = []
        for path, becomes in files.items():
            revision = remotes[0].revision if remotes else self._revision
            with self._explained(path):
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
            if found.size is not None and not 0 <= found.size <= _most_bytes(path):
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
        """Fetches what is missing of a file, and compares the whole with its checksum.

        What came before a fault is kept; a file with another checksum is removed.
        """
        sha256 = file_sha256(file) if file.is_file() else ""
        if not sha256 or remote.sha256 not in (None, sha256):
            make_folder(file.parent)
            partial = partial_of(file)
            with self._explained(remote.path, file):
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
        """Completes a partial file; a connection that breaks is taken up again a few times."""
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
        """One request for what is missing, of which no byte more than announced is written.

        Raises:
            CheckpointError: the server sends something else, or another count of bytes.
        """
        most = remote.size if remote.size is not None else _most_bytes(remote.path)
        headers = dict(self._headers) | ({"Range": f"bytes={start}-"} if start else {})
        with self._answer(self._url(remote.path, remote.revision), headers) as answer:
            if answer.status_code == _NO_SUCH_RANGE:
                partial.unlink(missing_ok=True)  # the next call begins anew
            self._utils.hf_raise_for_status(answer)
            self._check_answer(remote, answer)
            if answer.status_code != _PARTIAL_CONTENT:
                start = 0
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise self._fault(remote, f"comes in other parts than were asked for; {_ELSEWHERE}")
            stated = answer.headers.get("Content-Length", "")
            count = start
            if stated.isdecimal() and start + int(stated[:20]) > most:
                raise self._too_long(remote, most)
            bar = self._utils.tqdm(
                total=remote.size, initial=start, unit="B", unit_scale=True, desc=remote.path[-40:]
            )
            with partial.open("ab" if start else "wb") as output, bar:
                for chunk in _chunks(answer):
                    count += len(chunk)
                    if count > most:
                        output.truncate(0)  # none of it can be trusted
                        raise self._too_long(remote, most)
                    output.write(chunk)
                    bar.update(len(chunk))
        if remote.size is not None and count < remote.size:
            raise self._fault(
                remote,
                f"ended after {count:,} of {remote.size:,} bytes; wait a little, then {AGAIN}",
            )

    @contextlib.contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """A response whose body has not been read; requests and httpx open it differently."""
        session, timeout = self._utils.get_session(), self._constants.HF_HUB_DOWNLOAD_TIMEOUT
        options = {"headers": headers, "timeout": timeout}
        if hasattr(session, "stream") and callable(session.stream):
            opened = session.stream("GET", url, follow_redirects=True, **options)
        else:
            opened = session.get(url, stream=True, **options)
        with opened as answer:
            yield answer

    def _check_answer(self, remote: Remote, answer: Any) -> None:
        """Refuses what is not the bytes of the file, before any is read."""
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

    def _too_long(self, remote: Remote, most: int) -> CheckpointError:
        return self._fault(
            remote, f"is longer than the {most:,} bytes that it may have; {_ELSEWHERE}"
        )

    def _fault(self, remote: Remote, words: str) -> CheckpointError:
        return CheckpointError(f"{REPOSITORY}/{remote.path}: from {self._server}, {words}")

    @contextlib.contextmanager
    def _explained(self, path: str, file: Path | None = None) -> Iterator[None]:
        """Whatever the library or the disk raises becomes one sentence."""
        # Its transport is requests, httpx or httpx2, by version; their base is not its own.
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
        """What went wrong between us and the server, and the cure."""
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
        is_short = bool(lines) and len(lines[0]) <= _LONGEST_REASON
        reason = lines[0].rstrip(".") if is_short else type(error).__name__
        if type(error).__name__ in _REDIRECT_FAULTS:
            return f"{server} redirects to where nothing can be fetched ({reason}); {_ELSEWHERE}"
        return (
            f"cannot be fetched from {server} ({reason}); check the connection, or name a mirror "
            f"in HF_ENDPOINT, then {AGAIN}"
        )


def _server_of(endpoint: str) -> str:
    """Host and port of an address, without a password that it may hold."""
    with contextlib.suppress(ValueError):
        address = urlsplit(endpoint)
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return address.netloc.rpartition("@")[2]
    raise CheckpointError(
        f"HF_ENDPOINT is {endpoint!r}, which is no address; unset it, or write it like "
        "https://huggingface.co"
    )


def _most_bytes(path: str) -> int:
    return _MOST_TEXT_BYTES if path.endswith(".json") else _MOST_BYTES


def _chunks(answer: Any) -> Iterator[bytes]:
    """The body as it comes; it is known not to be compressed."""
    chunks: Iterator[bytes]
    is_httpx = hasattr(answer, "iter_bytes")
    chunks = answer.iter_bytes() if is_httpx else answer.iter_content(1 << 16)
    return chunks


def partial_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.incomplete")


def bytes_kept(remote: Remote, partial: Path) -> int:
    """How many bytes of a file an earlier call left; 0 where they cannot be gone on from."""
    have = partial.stat().st_size if partial.is_file() else 0
    return have if remote.size is not None and have <= remote.size else 0
