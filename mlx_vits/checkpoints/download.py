"""Download upstream's pretrained models from the Hugging Face hub and assemble a base.

All files come from one commit. They are downloaded to a hidden folder beside the base, under the
commit's name; the base appears only once every file has passed the hub's checksum and been opened.
Single files are fetched by `hub.py`.

Source: GPT-SoVITS `README.md` ("Pretrained Models") and the file names in its `config.py`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx

from mlx_vits.checkpoints.base import (
    load_content_encoder,
    load_discriminator,
    load_generator,
    weights_home,
)
from mlx_vits.checkpoints.contents import has_posterior
from mlx_vits.checkpoints.convert import torch_to_mlx
from mlx_vits.checkpoints.hub import (
    AGAIN,
    REPOSITORY,
    Fetched,
    Hub,
    Remote,
    bytes_kept,
    partial_of,
)
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.checkpoints.voice_file import read_voice
from mlx_vits.config import VERSIONS, Config
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import (
    atomic_write,
    fresh_folder,
    given_path,
    make_folder,
    replace_folder,
    tidy,
)
from mlx_vits.system.locks import WriterLock

CHECKSUMS = "checksums.json"
_NETS = {
    "v1": ("s2G488k.pth", "s2D488k.pth"),
    "v2": ("gsv-v2final-pretrained/s2G2333k.pth", "gsv-v2final-pretrained/s2D2333k.pth"),
    "v2Pro": ("v2Pro/s2Gv2Pro.pth", "v2Pro/s2Dv2Pro.pth"),
    "v2ProPlus": ("v2Pro/s2Gv2ProPlus.pth", "v2Pro/s2Dv2ProPlus.pth"),
}
_ENCODER = ("chinese-hubert-base/config.json", "chinese-hubert-base/pytorch_model.bin")
_SPEAKER = "sv/pretrained_eres2netv2w24s4ep4.ckpt"

Say = Callable[[str], None]


def _base_files(version: str) -> dict[str, str]:
    """Map the files of a base from paths in upstream's repository to paths in the base."""
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
    """Download a version's pretrained models and assemble a base.

    Tensors are bit-identical to upstream's, under its names and in PyTorch's axes. `checksums.json`
    records the origin of each file: repository, commit, path, size in bytes and SHA-256.

    Args:
        version: "v1", "v2", "v2Pro" or "v2ProPlus".
        output: the base's folder; `weights_home() / version` by default.
        revision: a branch, tag or commit of the repository.
        force: whether to download an existing base again.
        say: called with a line for each file.

    Returns:
        The base's folder; an already complete one is left unchanged.

    Raises:
        CheckpointError: a file cannot be fetched, fails its checksum, or is of another version; no
            base appears, and the next call resumes.
        UserError: the disk is full or not writable, or another download is running there.
        KeyboardInterrupt: interrupted; the next call resumes.
    """
    if version not in _NETS:
        raise CheckpointError(f"{version}: cannot be downloaded; choose {', '.join(VERSIONS)}")
    target = (
        weights_home() / version if output is None else given_path(output, CheckpointError)
    ).resolve()
    tidy(target)
    if _is_there(target, version, force):
        say(f"{target}: the {version} base is there already; --force fetches it again")
        return target
    stage = target.with_name(f".{target.name}.download")
    hub = Hub(revision)
    try:
        remotes = hub.describe(_base_files(version))
        make_folder(stage)
        with WriterLock(stage):
            _check_space(remotes, stage, target)
            _build(version, _fetch_all(hub, remotes, stage, say), target)
    except KeyboardInterrupt as error:
        error.args = (f"stopped; {AGAIN}",)
        raise
    shutil.rmtree(stage, ignore_errors=True)
    say(f"{target}: the {version} base is ready")
    return target


def _is_there(target: Path, version: str, force: bool) -> bool:
    """Whether `target` holds a complete base; refuse to replace anything but a base."""
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


def _staged(remote: Remote, stage: Path) -> Path:
    return stage / remote.revision[:12] / remote.path


def _fetch_all(hub: Hub, remotes: list[Remote], stage: Path, say: Say) -> list[Fetched]:
    fetched = []
    for number, remote in enumerate(remotes, 1):
        file = _staged(remote, stage)
        start = bytes_kept(remote, partial_of(file))
        note = f", goes on at {_megabytes(start)}" if start else ""
        note = ", fetched before" if file.is_file() else note
        say(f"{number}/{len(remotes)}  {remote.path}  {_megabytes(remote.size or 0)}{note}")
        fetched.append(hub.fetch(remote, file))
    return fetched


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _check_space(remotes: list[Remote], stage: Path, target: Path) -> None:
    """Check upfront that the disk has room for the files and the base."""
    needed = 0
    for remote in remotes:
        file, size = _staged(remote, stage), remote.size or 0
        needed += size if file.is_file() else 2 * size - bytes_kept(remote, partial_of(file))
    free = shutil.disk_usage(stage).free
    if needed > free:
        raise CheckpointError(
            f"{target}: needs {_megabytes(needed)} and its disk has {_megabytes(free)} free; free "
            "some space, or name a folder on another disk with --output"
        )


def _build(version: str, fetched: list[Fetched], target: Path) -> None:
    """Open every file, write the base, and move it into place once complete."""
    generator, discriminator, *others = fetched
    with fresh_folder(target) as fresh:
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


@contextlib.contextmanager
def _doubted(*files: Fetched) -> Iterator[None]:
    """Delete files that cannot be opened and have no checksum, so that they are fetched anew."""
    try:
        yield
    except CheckpointError:
        for fetched in files:
            if fetched.remote.sha256 is None:
                fetched.file.unlink(missing_ok=True)
        raise


def _lay_generator(version: str, fetched: Fetched, folder: Path) -> Config:
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


def _lay_encoder(config: Fetched, weights: Fetched, folder: Path) -> None:
    load_content_encoder(weights.file.parent)  # both files are there, under their names
    tensors = {name: mx.array(value) for name, value in read_torch_archive(weights.file).items()}
    make_folder((folder / weights.remote.becomes).parent)
    write_tensors(folder / weights.remote.becomes, tensors, {"format": "pt"})
    _copy(config, folder)


def _copy(fetched: Fetched, folder: Path) -> None:
    path = folder / fetched.remote.becomes
    make_folder(path.parent)
    with fetched.file.open("rb") as source, atomic_write(path) as output:
        shutil.copyfileobj(source, output)
