"""Download upstream's pretrained models from the Hugging Face hub: a base, and the Chinese BERT.

All files come from one commit. They are downloaded to a hidden folder beside the base, under the
commit's name; the base appears only once every file has passed the hub's checksum and been opened.
Single files are fetched by `hub.py` and converted by `published.py`.

Source: GPT-SoVITS `README.md` ("Pretrained Models") and the file names in its `config.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mlx_vits.checkpoints.base import (
    CONTENT_ENCODER,
    DISCRIMINATOR_FILE,
    SPEAKER_ENCODER,
    weights_home,
)
from mlx_vits.checkpoints.bert_file import BERT
from mlx_vits.checkpoints.gpt_file import GPT_FILE
from mlx_vits.checkpoints.hub import (
    AGAIN,
    REPOSITORY,
    Fetched,
    Hub,
    Remote,
    bytes_kept,
    partial_of,
)
from mlx_vits.checkpoints.published import CHECKSUMS, add_gpt, build_base, build_bert
from mlx_vits.checkpoints.voice_file import GENERATOR_FILE, WEIGHTS_FILE
from mlx_vits.config import CONFIG_FILE, VERSIONS, Config
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import given_path, make_folder, tidy
from mlx_vits.system.locks import WriterLock

__all__ = ["REPOSITORY", "download_base"]

_NETS = {
    "v1": ("s2G488k.pth", "s2D488k.pth"),
    "v2": ("gsv-v2final-pretrained/s2G2333k.pth", "gsv-v2final-pretrained/s2D2333k.pth"),
    "v2Pro": ("v2Pro/s2Gv2Pro.pth", "v2Pro/s2Dv2Pro.pth"),
    "v2ProPlus": ("v2Pro/s2Gv2ProPlus.pth", "v2Pro/s2Dv2ProPlus.pth"),
}
_GPTS = {
    "v1": "s1bert25hz-2kh-longer-epoch=68e-step=50232.ckpt",
    "v2": "gsv-v2final-pretrained/s1bert25hz-5kh-longer-epoch=12-step=369668.ckpt",
    "v2Pro": "s1v3.ckpt",
    "v2ProPlus": "s1v3.ckpt",
}
_ENCODER = ("chinese-hubert-base/config.json", "chinese-hubert-base/pytorch_model.bin")
_SPEAKER = "sv/pretrained_eres2netv2w24s4ep4.ckpt"
_BERT_FILES = {
    "chinese-roberta-wwm-ext-large/config.json": "config.json",
    "chinese-roberta-wwm-ext-large/tokenizer.json": "tokenizer.json",
    "chinese-roberta-wwm-ext-large/pytorch_model.bin": "weights.safetensors",
}

Say = Callable[[str], None]


def _base_files(version: str) -> dict[str, str]:
    """Map the files of a base from paths in upstream's repository to paths in the base."""
    generator, discriminator = _NETS[version]
    files = {
        generator: GENERATOR_FILE,
        discriminator: DISCRIMINATOR_FILE,
        _ENCODER[0]: f"{CONTENT_ENCODER}/{CONFIG_FILE}",
        _ENCODER[1]: f"{CONTENT_ENCODER}/{WEIGHTS_FILE}",
    }
    if version in ("v2Pro", "v2ProPlus"):
        files[_SPEAKER] = f"{SPEAKER_ENCODER}/{Path(_SPEAKER).name}"
    return files | {_GPTS[version]: GPT_FILE}


class _Job(NamedTuple):
    """Files that become one thing.

    Attributes:
        what: they become, for people.
        target: the folder that they go to.
        files: path within upstream's repository to path within `target`.
        build: opens the fetched files, in the order of `files`, and puts them into `target`.
    """

    what: str
    target: Path
    files: Mapping[str, str]
    build: Callable[[Sequence[Fetched], Path], None]

    @property
    def stage(self) -> Path:
        """Where bytes gather."""
        return self.target.with_name(f".{self.target.name}.download")


def download_base(
    version: str,
    *,
    output: Path | None = None,
    revision: str = "main",
    force: bool = False,
    with_bert: bool = True,
    say: Say = print,
) -> Path:
    """Download a version's pretrained models and assemble a base, and the Chinese BERT.

    Only what is missing is downloaded: an older base gets its T2S model alone, and the BERT, which
    all bases share, comes once. `checksums.json` records the origin of each file: repository,
    commit, path, size in bytes and SHA-256.

    Args:
        version: "v1", "v2", "v2Pro" or "v2ProPlus".
        output: the base's folder; `weights_home() / version` by default.
        revision: a branch, tag or commit of the repository.
        force: whether to download existing files again.
        with_bert: whether to download the BERT for Chinese, `weights_home() / "bert"`.
        say: called with the total size, and a line for each file.

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
    jobs = [_base_job(version, target, force)]
    jobs += [_bert_job(force)] if with_bert else []
    for job in jobs:
        if not job.files:
            say(f"{job.target}: {job.what} is there already; --force fetches it again")
    jobs = [job for job in jobs if job.files]
    if not jobs:
        return target
    try:
        _fetch_and_build(Hub(revision), jobs, say)
    except KeyboardInterrupt as error:
        error.args = (f"stopped; {AGAIN}",)
        raise
    return target


def _base_job(version: str, target: Path, force: bool) -> _Job:
    """Plan the download of what a base lacks; no files if nothing.

    Raises:
        CheckpointError: something else is there.
    """
    tidy(target)
    what, files = f"the {version} base", _base_files(version)
    if not _is_there(target, version, force):
        return _Job(what, target, files, partial(build_base, version))
    if (target / GPT_FILE).is_file():
        return _Job(what, target, {}, add_gpt)
    return _Job(f"the GPT of {what}", target, {_GPTS[version]: GPT_FILE}, add_gpt)


def _bert_job(force: bool) -> _Job:
    """Plan the download of the Chinese BERT; no files if it is there.

    Raises:
        CheckpointError: something else is there.
    """
    target = (weights_home() / BERT).resolve()
    tidy(target)
    held = _names_in(target)
    ours = {*_BERT_FILES.values(), CHECKSUMS}
    is_there = bool(held) and not force
    if held - ours if force else is_there and CONFIG_FILE not in held:
        raise CheckpointError(
            f"{target}: holds something else than the Chinese BERT; move it away, or leave the "
            "BERT out with --no-bert"
        )
    return _Job("the Chinese BERT", target, {} if is_there else _BERT_FILES, build_bert)


def _fetch_and_build(hub: Hub, jobs: list[_Job], say: Say) -> None:
    remotes = hub.describe({path: name for job in jobs for path, name in job.files.items()})
    what = "1 file" if len(remotes) == 1 else f"{len(remotes)} files"
    say(f"{what}, {_megabytes(sum(remote.size or 0 for remote in remotes))} in all")
    for job in jobs:
        make_folder(job.stage)
    shares = [(job, [r for r in remotes if r.path in job.files]) for job in jobs]
    _check_space(shares)
    number = 0
    for job, own in shares:
        with WriterLock(job.stage):
            fetched = []
            for remote in own:
                number += 1
                fetched.append(_fetch(hub, remote, job.stage, f"{number}/{len(remotes)}", say))
            job.build(fetched, job.target)
        shutil.rmtree(job.stage, ignore_errors=True)
        say(f"{job.target}: {job.what} is ready")


def _names_in(folder: Path) -> set[str]:
    """Return the names in a folder; none if it does not exist."""
    try:
        return {path.name for path in folder.iterdir()} - {".DS_Store"}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise CheckpointError(
            f"{folder}: is not a folder that can be read ({error.strerror}); choose another with "
            "--output"
        ) from error


def _is_there(target: Path, version: str, force: bool) -> bool:
    """Whether a base lies at `target`, with or without its T2S model.

    Raises:
        CheckpointError: something is there that is not to be replaced.
    """
    held = _names_in(target)
    if held and GENERATOR_FILE not in held:
        raise CheckpointError(f"{target}: holds something else; choose another with --output")
    if not held:
        return False
    if force:
        known = {path.split("/")[0] for path in _base_files("v2Pro").values()}
        if foreign := held - known - {CONFIG_FILE, CHECKSUMS}:
            raise CheckpointError(
                f"{target}: also holds {min(foreign)}, which --force would delete; move it away"
            )
        return False
    kept = Config.read(target / CONFIG_FILE).version
    if kept != version:
        raise CheckpointError(
            f"{target}: holds a {kept} base; choose another folder, or --force to replace it"
        )
    needed = [path for path in _base_files(version).values() if path != GPT_FILE]
    if lacking := [path for path in needed if not (target / path).is_file()]:
        raise CheckpointError(f"{target}: lacks {', '.join(lacking)}; --force fetches it anew")
    return True


def _staged(remote: Remote, stage: Path) -> Path:
    return stage / remote.revision[:12] / remote.path


def _fetch(hub: Hub, remote: Remote, stage: Path, count: str, say: Say) -> Fetched:
    file = _staged(remote, stage)
    start = bytes_kept(remote, partial_of(file))
    note = f", goes on at {_megabytes(start)}" if start else ""
    note = ", fetched before" if file.is_file() else note
    say(f"{count}  {remote.path}  {_megabytes(remote.size or 0)}{note}")
    return hub.fetch(remote, file)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _check_space(shares: list[tuple[_Job, list[Remote]]]) -> None:
    """Check upfront that the disks have room for the files and what they become."""
    needed: dict[int, int] = {}
    for job, remotes in shares:
        disk = job.stage.stat().st_dev
        for remote in remotes:
            file, size = _staged(remote, job.stage), remote.size or 0
            more = size if file.is_file() else 2 * size - bytes_kept(remote, partial_of(file))
            needed[disk] = needed.get(disk, 0) + more
        free = shutil.disk_usage(job.stage).free
        if needed[disk] > free:
            raise CheckpointError(
                f"{job.target}: needs {_megabytes(needed[disk])} and its disk has "
                f"{_megabytes(free)} free; free some space, or name a folder on another disk with "
                "--output or MLX_VITS_HOME"
            )
