"""Upstream's published models, fetched from the Hugging Face hub and laid out as a base.

All files come from one commit. Their bytes gather in a hidden folder beside the base, under the
commit's name, until everything has been compared with the hub's checksums and opened; only then
does the base appear. The requests and the progress bars are `huggingface_hub`'s (the optional extra
`hub`), the partial files are ours: its own `hf_hub_download` discards them when it is stopped.

Source: GPT-SoVITS `README.md` ("Pretrained Models") and the file names in its `config.py`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import mlx.core as mx

from mlx_vits.checkpoints.base import (
    file_sha256,
    load_content_encoder,
    load_discriminator,
    load_generator,
    weights_home,
)
from mlx_vits.checkpoints.contents import has_posterior
from mlx_vits.checkpoints.convert import torch_to_mlx
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.checkpoints.voice_file import read_voice
from mlx_vits.config import VERSIONS, Config
from mlx_vits.errors import CheckpointError
from mlx_vits.files import atomic_write, given_path, make_folder, replace_folder, temporary_sibling
from mlx_vits.version import __version__

REPOSITORY = "lj1995/GPT-SoVITS"
CHECKSUMS = "checksums.json"
_NETS = {
    "v1": ("s2G488k.pth", "s2D488k.pth"),
    "v2": ("gsv-v2final-pretrained/s2G2333k.pth", "gsv-v2final-pretrained/s2D2333k.pth"),
    "v2Pro": ("v2Pro/s2Gv2Pro.pth", "v2Pro/s2Dv2Pro.pth"),
    "v2ProPlus": ("v2Pro/s2Gv2ProPlus.pth", "v2Pro/s2Dv2ProPlus.pth"),
}
_ENCODER = ("chinese-hubert-base/config.json", "chinese-hubert-base/pytorch_model.bin")
_SPEAKER = "sv/pretrained_eres2netv2w24s4ep4.ckpt"
_AGAIN = "run the same command again: it goes on where it stopped"
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_REASON = 80

Say = Callable[[str], None]


class _Remote(NamedTuple):
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


class _Fetched(NamedTuple):
    """A whole file on this disk, with the SHA-256 of its bytes."""

    remote: _Remote
    file: Path
    sha256: str


def _base_files(version: str) -> dict[str, str]:
    """What a base is made of: path within upstream's repository to path within the base."""
    generator, discriminator = _NETS[version]
    files = {
        generator: "generator.safetensors",
        discriminator: "discriminator.safetensors",
        _ENCODER[0]: "content_encoder/config.json",
        _ENCODER[1]: "content_encoder/weights.safetensors",
    }
    if version in ("v2Pro", "v2ProPlus"):
        files[_SPEAKER] = f"speaker_encoder/{Path(_SPEAKER).name}"
    return files


def download_base(
    version: str,
    *,
    output: Path | None = None,
    revision: str = "main",
    force: bool = False,
    say: Say = print,
) -> Path:
    """Fetches a version's pretrained models and makes a base of them.

    The tensors are upstream's, bit for bit, under its names and in PyTorch's axes. `checksums.json`
    keeps where each came from: repository, commit, path, size in bytes and SHA-256.

    Args:
        version: "v1", "v2", "v2Pro" or "v2ProPlus".
        output: the base's folder; `weights_home() / version` by default.
        revision: a branch, tag or commit of the repository.
        force: fetches again what is there already.
        say: told a line for each file.

    Returns:
        The base's folder; it was left as it was if it was complete.

    Raises:
        CheckpointError: a file cannot be fetched, is not what the hub says it is, or is of another
            version; nothing appears under the base's name, and the next call goes on from there.
        UserError: the disk is full, or cannot be written.
        KeyboardInterrupt: stopped; the next call goes on from there.
    """
    if version not in _NETS:
        raise CheckpointError(f"{version}: cannot be downloaded; choose {', '.join(VERSIONS)}")
    target = (
        weights_home() / version if output is None else given_path(output, CheckpointError)
    ).resolve()
    if _is_there(target, version, force):
        say(f"{target}: the {version} base is there already; --force fetches it again")
        return target
    stage = target.with_name(f".{target.name}.download")
    hub = _Hub(revision)
    try:
        remotes = hub.describe(_base_files(version))
        make_folder(stage)
        with _only_one(stage):
            _check_space(remotes, stage, target)
            _build(version, _fetch_all(hub, remotes, stage, say), target)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"stopped; {_AGAIN}") from error
    shutil.rmtree(stage, ignore_errors=True)
    say(f"{target}: the {version} base is ready")
    return target


def _is_there(target: Path, version: str, force: bool) -> bool:
    """Whether a complete base lies at `target`; refuses to replace anything that is no base."""
    try:
        held = {path.name for path in target.iterdir()} - {".DS_Store"}
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CheckpointError(
            f"{target}: is not a folder that can be read ({error.strerror}); choose another with "
            "--output"
        ) from error
    if held and "generator.safetensors" not in held:
        raise CheckpointError(f"{target}: holds something else; choose another with --output")
    if not held:
        return False
    if force:
        known = {path.split("/")[0] for path in _base_files("v2Pro").values()}
        if foreign := held - known - {"config.json", CHECKSUMS}:
            raise CheckpointError(
                f"{target}: also holds {min(foreign)}, which --force would delete; move it away"
            )
        return False
    kept = Config.read(target / "config.json").version
    if kept != version:
        raise CheckpointError(
            f"{target}: holds a {kept} base; choose another folder, or --force to replace it"
        )
    if lacking := [p for p in _base_files(version).values() if not (target / p).is_file()]:
        raise CheckpointError(f"{target}: lacks {', '.join(lacking)}; --force fetches it anew")
    return True


class _Hub:
    """One revision of upstream's repository; every fault is a sentence."""

    def __init__(self, revision: str):
        try:
            from huggingface_hub import errors, file_download, utils
        except ImportError as error:
            raise CheckpointError(
                "huggingface_hub, which downloads need, is not installed; run "
                "`pip install 'huggingface_hub>=0.30'`"
            ) from error
        self._revision = revision
        self._errors: Any = errors
        self._requests: Any = file_download
        self._headers = utils.build_hf_headers(
            library_name="mlx_vits", library_version=__version__
        ) | {"Accept-Encoding": "identity"}
        # Read here, not when the library is imported. None stands for the hub itself.
        self._endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        self._server = _server_of(self._endpoint or "https://huggingface.co")

    def describe(self, files: Mapping[str, str]) -> list[_Remote]:
        """Asks for size and checksum of every file, all at the commit of the first."""
        remotes: list[_Remote] = []
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
            remotes.append(_Remote(commit, path, becomes, found.size, sha256))
        return remotes

    def _url(self, path: str, revision: str) -> str:
        address = self._requests.hf_hub_url
        return str(address(REPOSITORY, path, revision=revision, endpoint=self._endpoint))

    def fetch(self, remote: _Remote, file: Path) -> _Fetched:
        """Fetches what is missing of a file, and compares the whole with its checksum.

        What came before a fault is kept; a file with another checksum is removed.
        """
        sha256 = file_sha256(file) if file.is_file() else ""
        if not sha256 or remote.sha256 not in (None, sha256):
            make_folder(file.parent)
            start, partial = _start(remote, file), _partial(file)
            with self._explained(remote.path, file):
                with partial.open("ab" if start else "wb") as output:
                    self._requests.http_get(
                        self._url(remote.path, remote.revision),
                        output,
                        resume_size=start,
                        headers=dict(self._headers),
                        expected_size=remote.size,
                        displayed_filename=remote.path,
                    )
                partial.replace(file)
            sha256 = file_sha256(file)
        if remote.sha256 not in (None, sha256):
            file.unlink(missing_ok=True)
            raise CheckpointError(
                f"{REPOSITORY}/{remote.path}: arrived damaged, its SHA-256 is not the one that "
                f"{self._server} states, and was removed; run the same command again to fetch it "
                "anew"
            )
        return _Fetched(remote._replace(size=file.stat().st_size), file, sha256)

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
                    f"{file}: cannot be written ({error.strerror}); {cure}, then {_AGAIN}"
                ) from error
            raise CheckpointError(f"{REPOSITORY}/{path}: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        """What went wrong between us and the server, and the cure."""
        errors, server = self._errors, self._server
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return f"cannot be fetched in offline mode; unset HF_HUB_OFFLINE, then {_AGAIN}"
        if isinstance(error, errors.RevisionNotFoundError):
            return (
                f"{server} knows no revision {self._revision!r} of it; leave --revision out, or "
                "name a branch, tag or commit"
            )
        if status in (401, 403):
            return (
                f"{server} refuses access ({status}); renew or remove the token that this machine "
                f"sends (HF_TOKEN, or `hf auth login`), then {_AGAIN}"
            )
        if isinstance(error, errors.EntryNotFoundError) or status in (404, 410):
            return (
                f"{server} has no such file at revision {self._revision!r}; name an older one with "
                "--revision, or check HF_ENDPOINT"
            )
        if status is not None:
            return f"{server} answers with an error ({status}); wait a little, then {_AGAIN}"
        lines = str(error).splitlines()
        is_short = bool(lines) and len(lines[0]) <= _LONGEST_REASON
        reason = lines[0].rstrip(".") if is_short else type(error).__name__
        return (
            f"cannot be fetched from {server} ({reason}); check the connection, or name a mirror "
            f"in HF_ENDPOINT, then {_AGAIN}"
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


def _staged(remote: _Remote, stage: Path) -> Path:
    return stage / remote.revision[:12] / remote.path


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.incomplete")


def _start(remote: _Remote, file: Path) -> int:
    """How many bytes of a file an earlier call left; 0 where they cannot be gone on from."""
    partial = _partial(file)
    have = partial.stat().st_size if partial.is_file() else 0
    return have if remote.size is not None and have <= remote.size else 0


def _fetch_all(hub: _Hub, remotes: list[_Remote], stage: Path, say: Say) -> list[_Fetched]:
    fetched = []
    for number, remote in enumerate(remotes, 1):
        file = _staged(remote, stage)
        start = _start(remote, file)
        note = f", goes on at {_megabytes(start)}" if start else ""
        note = ", fetched before" if file.is_file() else note
        say(f"{number}/{len(remotes)}  {remote.path}  {_megabytes(remote.size or 0)}{note}")
        fetched.append(hub.fetch(remote, file))
    return fetched


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _check_space(remotes: list[_Remote], stage: Path, target: Path) -> None:
    """Refuses before hours of fetching what the disk cannot hold: the files, and the base."""
    needed = 0
    for remote in remotes:
        file, size = _staged(remote, stage), remote.size or 0
        needed += size if file.is_file() else 2 * size - _start(remote, file)
    free = shutil.disk_usage(stage).free
    if needed > free:
        raise CheckpointError(
            f"{target}: needs {_megabytes(needed)} and its disk has {_megabytes(free)} free; free "
            "some space, or name a folder on another disk with --output"
        )


@contextlib.contextmanager
def _only_one(stage: Path) -> Iterator[None]:
    """Keeps two downloads from writing into one partial file."""
    with (stage / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{stage}: another download writes there; wait for it") from error
        yield


def _build(version: str, fetched: list[_Fetched], target: Path) -> None:
    """Opens every file, writes the base, and gives it its name when it is whole."""
    generator, discriminator, *others = fetched
    fresh = temporary_sibling(target)
    try:
        make_folder(fresh)
        with _doubted(generator):
            config = _lay_generator(version, generator, fresh)
        with _doubted(discriminator):
            load_discriminator(discriminator.file, config)
            torch_to_mlx(discriminator.file, fresh / discriminator.remote.becomes)
        with _doubted(*others[:2]):
            _lay_encoder(others[0], others[1], fresh)
        for speaker in others[2:]:
            _copy(speaker, fresh)
        with atomic_write(fresh / CHECKSUMS) as file:
            records = [
                {"repository": REPOSITORY} | one.remote._asdict() | {"sha256": one.sha256}
                for one in fetched
            ]
            file.write(json.dumps({"files": records}, indent=1).encode())
        replace_folder(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _doubted(*files: _Fetched) -> Iterator[None]:
    """A file that cannot be opened, and whose checksum the hub did not state, is fetched anew."""
    try:
        yield
    except CheckpointError:
        for fetched in files:
            if fetched.remote.sha256 is None:
                fetched.file.unlink(missing_ok=True)
        raise


def _lay_generator(version: str, fetched: _Fetched, folder: Path) -> Config:
    file = read_voice(fetched.file)
    name = f"{REPOSITORY}/{fetched.remote.path}"
    cure = "name another commit of the repository with --revision"
    if file.config.version != version:
        raise CheckpointError(
            f"{name}: is a {file.config.version} generator, not {version}; {cure}"
        )
    if not has_posterior(file.tensors):
        raise CheckpointError(f"{name}: lacks enc_q, which training needs; {cure}")
    names = expected_shapes(load_generator(file))
    try:
        config = json.dumps(file.config.to_dict(), indent=1)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: its configuration is damaged ({error}); {cure}") from error
    with atomic_write(folder / "config.json") as output:
        output.write(config.encode())
    tensors = {key: mx.array(file.tensors[key]) for key in names}
    write_tensors(folder / fetched.remote.becomes, tensors, {"info": file.info, "format": "pt"})
    return file.config


def _lay_encoder(config: _Fetched, weights: _Fetched, folder: Path) -> None:
    load_content_encoder(weights.file.parent)  # both lie there, under their names
    tensors = {name: mx.array(value) for name, value in read_torch_archive(weights.file).items()}
    make_folder((folder / weights.remote.becomes).parent)
    write_tensors(folder / weights.remote.becomes, tensors, {"format": "pt"})
    _copy(config, folder)


def _copy(fetched: _Fetched, folder: Path) -> None:
    path = folder / fetched.remote.becomes
    make_folder(path.parent)
    with fetched.file.open("rb") as source, atomic_write(path) as output:
        shutil.copyfileobj(source, output)
