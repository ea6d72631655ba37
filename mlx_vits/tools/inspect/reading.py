"""Open any file or folder with weights in it and list what it holds, not what it should hold.

Unlike the readers that load a voice, these need neither a configuration nor every tensor. What
cannot be used becomes a sentence in `faults`, and the rest is still shown; only a file that cannot
be read at all, or that holds no net, is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypedDict

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_vits.checkpoints.base import (
    CONTENT_ENCODER,
    DISCRIMINATOR_FILE,
    SPEAKER_ENCODER,
    content_encoder_file,
    find_base,
    judge_path,
    weights_home,
)
from mlx_vits.checkpoints.contents import (
    check_tensors,
    has_posterior,
    is_discriminator,
    is_generator,
    refuse_others,
)
from mlx_vits.checkpoints.download import CHECKSUMS
from mlx_vits.checkpoints.gpt_file import GPTForm, find_gpt, gpt_weights, is_gpt, read_gpt
from mlx_vits.checkpoints.run import (
    BEST,
    CHECKPOINTS,
    GPT_LAST,
    LAST,
    RunState,
    read_place,
    read_run_state,
)
from mlx_vits.checkpoints.run_info import RUN_FILE, RunInfo, is_run
from mlx_vits.checkpoints.safetensors_header import read_header
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.upstream import UpstreamFile, read_upstream
from mlx_vits.checkpoints.voice_file import GENERATOR_FILE, WEIGHTS_FILE, stated_config
from mlx_vits.config import CONFIG_FILE, read_json_table
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import given_path
from mlx_vits.system.json_files import read_json
from mlx_vits.tools.inspect.layers import upstream_tensors
from mlx_vits.tools.inspect.subject import Net, NetName, OptimizerFile, Subject

_ENCODER_STARTS = ("feature_extractor.", "feature_projection.", "encoder.", "masked_spec")


class _Checksums(TypedDict):
    """What `mlx-vits download` leaves in a base."""

    files: list[dict[str, Any]]


def read_subject(name_or_path: str) -> Subject[Net]:
    """Open a file or a folder.

    Args:
        name_or_path: a path, or the name of a base under `weights_home()`.

    Raises:
        CheckpointError: it is missing, unreadable, or holds no net.
    """
    path = given_path(name_or_path, CheckpointError)
    if len(path.parts) == 1 and not path.exists() and (weights_home() / path).is_dir():
        path = find_base(name_or_path).generator
    if is_gpt(path):
        return _read_gpt(path)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    net = _upstream_net(read_upstream(path))
    return Subject(path, net.kind, nets=[net])


def _read_gpt(path: Path) -> Subject[Net]:
    kinds: dict[GPTForm, str] = {
        "exported": "exported GPT" if path.is_file() else "GPT",
        "state": "state of a GPT's training, of which the weights are used",
        "folder": "GPT in a folder",
    }
    file = read_gpt(path)
    is_archive = file.form != "folder"
    net = Net(
        "GPT",
        kinds[file.form],
        "exported" if is_archive else "voice",
        file.source,
        "PyTorch file (zip)" if is_archive else "safetensors file in a folder",
        dict(file.tensors),
        file.config.to_dict(),
        "the file" if is_archive else f"{CONFIG_FILE} beside it",
        file.info,
    )
    return Subject(path, net.kind, nets=[net])


def _read_folder(path: Path) -> Subject[Net]:
    if is_run(path):
        return _read_run(path)
    if (path / "base" / GENERATOR_FILE).is_file():
        path = path / "base"  # the demo keeps its base beside its voice
    if (path / GENERATOR_FILE).is_file():
        return _read_base(path)
    if (path / WEIGHTS_FILE).is_file():
        subject = _read_safetensors(path / WEIGHTS_FILE, "safetensors file in a folder")
        subject.path, subject.kind = path, f"folder of a {subject.kind}"
        return subject
    raise CheckpointError(
        f"{path}: is no voice, base or run (no {WEIGHTS_FILE}, {GENERATOR_FILE} or {RUN_FILE}); "
        "name one of its files"
    )


@contextlib.contextmanager
def _noting(faults: list[str], end: str = "") -> Iterator[None]:
    """Add the sentence of an error to `faults`, and go on."""
    try:
        yield
    except CheckpointError as error:
        faults.append(f"{error}{end}")


def _upstream_net(file: UpstreamFile) -> Net:
    kinds = {
        "pretrained": f"pretrained {file.net}",
        "exported": "exported voice",
        "resume": f"resume file of the {file.net}",
    }
    code = file.version_code
    config = dict(file.config) if isinstance(file.config, Mapping) else {}
    optimizer, source = None, "the file"
    if file.form == "resume":
        held = file.optimizer["state"], file.optimizer["param_groups"]
        optimizer = OptimizerFile(*held, file.iteration, file.learning_rate)
        source = f"{CONFIG_FILE} of the experiment"
    is_trained_from = file.net == "generator" and file.form != "exported"
    return Net(
        file.net,
        kinds[file.form],
        file.form,
        file.path,
        f"PyTorch file (zip), {f'version code {code}' if code else 'no version code'}",
        file.tensors,
        config,
        source if config else "",
        file.info,
        {"version code": code} if code else {},
        optimizer,
        _name_if_missing(judge_path(file.path)) if is_trained_from else "",
    )


def _name_if_missing(path: Path | None) -> str:
    return path.name if path is not None and not path.is_file() else ""


def _read_safetensors(path: Path, container: str = "safetensors file") -> Subject[Net]:
    """A voice, one part of a base, or a run's state."""
    if path.is_file() and "place" in read_header(path).metadata:
        return _read_state(path)
    file = read_tensors(path)
    check_tensors(file.tensors, path)
    tensors = {name: file.tensors[name] for name in sorted(file.tensors)}
    net = _which_net(path, tensors)
    info = file.metadata.get("info", "")
    if net != "generator":
        part = Net(net, net, "part", path, container, tensors, info=info)
        return Subject(path, net, nets=[part])
    faults: list[str] = []
    config, source = _find_config(path, file.metadata, faults)
    version = file.metadata.get("version")
    claims = {} if version is None else {"metadata.version": version}
    is_part = path.name == GENERATOR_FILE
    voice = "voice" if has_posterior(tensors) else "exported voice"
    kind = "generator of a base" if is_part else voice
    found = Net(
        net,
        kind,
        "part" if is_part else "voice",
        path,
        container,
        tensors,
        config,
        source,
        info,
        claims,
        lacks_discriminator=_name_if_missing(path.with_name(DISCRIMINATOR_FILE)) if is_part else "",
    )
    return Subject(path, kind, faults=faults, nets=[found])


def _find_config(
    path: Path, metadata: Mapping[str, str], faults: list[str]
) -> tuple[dict[str, Any], str]:
    """Return the configuration in the metadata or beside the file, and where it was found."""
    beside = path.with_name(CONFIG_FILE)
    with _noting(faults, "; it is not used"):
        if "config" in metadata:
            return stated_config(metadata, path), "the metadata"
        if beside.is_file():
            return read_json_table(beside), f"{CONFIG_FILE} beside it"
    return {}, ""


def _which_net(path: Path, tensors: Mapping[str, Any]) -> NetName:
    if is_discriminator(tensors):
        return "discriminator"
    if is_generator(tensors):
        return "generator"
    if tensors and all(name.startswith(_ENCODER_STARTS) for name in tensors):
        return "content encoder"
    refuse_others(tensors, path)
    raise CheckpointError(
        f"{path}: holds no generator, discriminator or content encoder that mlx_vits knows; give "
        "a file of GPT-SoVITS's SoVITS stage or of mlx_vits"
    )


def _read_base(path: Path) -> Subject[Net]:
    subject = _read_safetensors(path / GENERATOR_FILE)
    subject.path, subject.kind = path, "base, to fine-tune from"
    if (path / DISCRIMINATOR_FILE).is_file():
        with _noting(subject.faults):
            subject.nets += _read_safetensors(path / DISCRIMINATOR_FILE).nets
    encoder = path / CONTENT_ENCODER
    if encoder.is_dir():
        with _noting(subject.faults):
            file = content_encoder_file(encoder)
            is_counted = file.suffix == ".safetensors"
            count = f"{len(read_header(file).names)} tensors, " if is_counted else ""
            words = f"content encoder, {count}{_megabytes(file)}"
            subject.parts[str(file.relative_to(path))] = words
    else:
        subject.faults.append(
            f"{path}: has no {CONTENT_ENCODER}; training from it needs clips that are prepared "
            "already, or --content-encoder"
        )
    for file in sorted((path / SPEAKER_ENCODER).glob("*")):
        subject.parts[str(file.relative_to(path))] = "speaker encoder"
    _add_gpt(subject, path)
    if (path / CHECKSUMS).is_file():
        with _noting(subject.faults):
            cure = "where the base came from cannot be told"
            record = read_json(path / CHECKSUMS, _Checksums, error=CheckpointError, cure=cure)
            subject.downloads = record["files"]
    return subject


def _add_gpt(subject: Subject[Net], folder: Path) -> None:
    """Name the GPT of a base or a run among its parts."""
    gpt = find_gpt(folder)
    if gpt is not None:
        file = gpt_weights(gpt)
        words = f"GPT, {_megabytes(file)}; to see it: mlx-vits inspect {gpt}"
        subject.parts[str(file.relative_to(folder))] = words


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.2f} MB"


def _read_run(path: Path) -> Subject[Net]:
    """A run's folder: its voice, or before there is one, its last state."""
    faults: list[str] = []
    run = _run_info(path, faults)
    last = path / CHECKPOINTS / LAST
    if last.is_file():
        with _noting(faults):
            run["place"] = asdict(read_place(read_header(last).metadata, last))
    voice = path / f"{run.get('voice')}.safetensors"
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.pth"), *path.glob("*.ckpt")])
    if not voice.is_file():
        voice = next((file for file in files if file.suffix == ".safetensors"), last)
    if not voice.is_file():
        faults.append(f"{path}: the run has no checkpoint yet; go on with --resume")
        raise CheckpointError(faults[0])
    subject = _read_safetensors(voice)
    subject.path, subject.kind = path, "run of mlx_vits, a fine-tune"
    subject.faults = [*faults, *subject.faults]
    subject.run = (subject.run or {}) | run
    for file in [*files, path / CHECKPOINTS / BEST, last, path / CHECKPOINTS / GPT_LAST]:
        if file.is_file():
            subject.parts[str(file.relative_to(path))] = _megabytes(file)
    _add_gpt(subject, path)
    return subject


def _run_info(folder: Path, faults: list[str]) -> dict[str, Any]:
    """What `run.json` holds, or as much of it as can be used."""
    with _noting(faults):
        return asdict(RunInfo.read(folder))
    with contextlib.suppress(CheckpointError):
        known = {f.name for f in fields(RunInfo)}
        values = read_json_table(folder / RUN_FILE)
        return {n: value for n, value in values.items() if n in known and isinstance(value, str)}
    return {}


def _read_state(path: Path) -> Subject[Net]:
    """Both nets and both optimizers of a run, as `checkpoints/run.py` writes them."""
    state = read_run_state(path, finite=False)  # NaN is reported, not refused
    faults: list[str] = []
    run: dict[str, Any] = {"place": asdict(state.place)}
    config: dict[str, Any] = {}
    folder = path.absolute().parent.parent
    if is_run(folder):
        run = _run_info(folder, faults) | run
        # A state states no configuration; without the voice's, sizes are read off the tensors.
        with contextlib.suppress(CheckpointError):
            voice = folder / f"{run.get('voice')}.safetensors"
            config = stated_config(read_header(voice).metadata, voice)
    nets = [
        _state_net(path, state, "generator", config),
        _state_net(path, state, "discriminator", {}),
    ]
    kind = "state of a run, to resume it from"
    nets = [net for net in nets if net.tensors]
    return Subject(path, kind, faults=faults, run=run, nets=nets)


def _state_net(path: Path, state: RunState, net: NetName, config: dict[str, Any]) -> Net:
    parameters = {n: a for n, a in _flat(state.trees[net]).items() if isinstance(a, mx.array)}
    optimizer = state.trees["optimizer_g" if net == "generator" else "optimizer_d"]
    return Net(
        net,
        f"{net} of a run's state",
        "state",
        path,
        "safetensors file, in the form of mlx_vits's own checkpoints",
        upstream_tensors(parameters),
        config,
        "the run's voice" if config else "",
        f"{state.place.epoch}epoch_{state.place.step}iteration",
        optimizer=OptimizerFile(_flat(optimizer), []),
    )


def _flat(tree: Any) -> dict[str, Any]:
    leaves: Any = tree_flatten(tree)
    return dict(leaves)
