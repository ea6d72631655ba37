"""Anything with weights in it, opened to be looked at: what lies there, not what it should be.

Unlike the readers that load a voice, this one asks for no configuration and no completeness. What
cannot be used becomes a sentence in `faults`, and the rest is still shown; only a file that cannot
be read at all, or that holds no net, is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_vits.checkpoints.base import content_encoder_file, find_base, weights_home
from mlx_vits.checkpoints.contents import (
    check_tensors,
    has_posterior,
    is_discriminator,
    is_generator,
    refuse_others,
)
from mlx_vits.checkpoints.run import (
    BEST,
    CHECKPOINTS,
    LAST,
    RunState,
    read_place,
    read_run_state,
)
from mlx_vits.checkpoints.run_info import RUN_FILE, RunInfo, is_run
from mlx_vits.checkpoints.safetensors_header import read_header
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.upstream import UpstreamFile, read_upstream
from mlx_vits.checkpoints.voice_file import stated_config
from mlx_vits.config import read_json_table
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import given_path
from mlx_vits.system.json_files import build_record, read_json
from mlx_vits.tools.inspect.layers import upstream_tensors
from mlx_vits.tools.inspect.subject import Form, Net, NetName, OptimizerFile, Subject

_CHECKSUMS = "checksums.json"  # of a base that `mlx-vits download` made
_UNTOLD = "where the base came from cannot be told"
_GENERATOR, _WEIGHTS = "generator.safetensors", "weights.safetensors"
_DISCRIMINATOR = "discriminator.safetensors"
_ENCODER_STARTS = ("feature_extractor.", "feature_projection.", "encoder.", "masked_spec")
# A generator's file name, and that of the discriminator that goes with it.
_PAIRS = (("s2G", "s2D"), ("G_", "D_"), ("generator", "discriminator"))


def read_subject(name_or_path: str) -> Subject:
    """Opens a file or a folder.

    Args:
        name_or_path: the name of a base under `weights_home()` is understood as well.

    Raises:
        CheckpointError: it is missing, unreadable, or holds no net.
    """
    path = given_path(name_or_path, CheckpointError)
    if len(path.parts) == 1 and not path.exists() and (weights_home() / path).is_dir():
        path = find_base(name_or_path).generator
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    net = _upstream_net(read_upstream(path))
    return Subject(path, net.kind, [net])


def _read_folder(path: Path) -> Subject:
    if is_run(path):
        return _read_run(path)
    if (path / "base" / _GENERATOR).is_file():
        path = path / "base"  # the demo keeps its base beside its voice
    if (path / _GENERATOR).is_file():
        return _read_base(path)
    if (path / _WEIGHTS).is_file():
        return _read_safetensors(path / _WEIGHTS, folder=path)
    raise CheckpointError(
        f"{path}: is no voice, base or run (no {_WEIGHTS}, {_GENERATOR} or run.json); name one of "
        "its files"
    )


def _upstream_net(file: UpstreamFile) -> Net:
    kinds = {
        "pretrained": f"pretrained {file.net}",
        "exported": "exported voice",
        "resume": f"resume file of the {file.net}",
    }
    code = f"version code {file.version_code}" if file.version_code else "no version code"
    config = _section(file.config)
    beside = "config.json of the experiment" if file.form == "resume" else "the file"
    return Net(
        file.net,
        kinds[file.form],
        file.form,
        file.path,
        f"PyTorch file (zip), {code}",
        file.tensors,
        config,
        beside if config else "",
        file.info,
        _claims(config),
        file.version_code,
        file.iteration if file.form == "resume" else None,
        file.learning_rate if file.form == "resume" else None,
        OptimizerFile(file.optimizer["state"], file.optimizer["param_groups"])
        if file.form == "resume"
        else None,
        _companion(file.path) if file.form != "exported" and file.net == "generator" else None,
    )


def _companion(path: Path) -> tuple[Path, bool] | None:
    for ours, theirs in _PAIRS:
        if ours in path.name:
            beside = path.with_name(path.name.replace(ours, theirs))
            return beside, beside.is_file()
    return None


def _section(values: Any) -> dict[str, Any]:
    return dict(values) if isinstance(values, Mapping) else {}


def _claims(config: Mapping[str, Any]) -> dict[str, str]:
    """What a configuration says of the version, by the key that says it."""
    found = {
        "config.version": config.get("version"),
        "config.model.version": _section(config.get("model")).get("version"),
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def _read_safetensors(path: Path, *, folder: Path | None = None) -> Subject:
    """A voice, one part of a base, or a run's state."""
    if path.is_file() and "place" in read_header(path).metadata:
        return _read_state(path)
    file = read_tensors(path)
    check_tensors(file.tensors, path)
    tensors = {name: file.tensors[name] for name in sorted(file.tensors)}
    faults: list[str] = []
    config, where = _safetensors_config(path, file.metadata, faults)
    net, kind, form = _what_is(path, tensors)
    claims = _claims(config)
    if "version" in file.metadata:
        claims["metadata.version"] = file.metadata["version"]
    is_part = net == "generator" and path.name == _GENERATOR
    found = Net(
        net,
        kind,
        form,
        path,
        f"safetensors file{' in a folder' if folder else ''}",
        tensors,
        config if net == "generator" else {},
        where if net == "generator" else "",
        file.metadata.get("info", ""),
        claims if net == "generator" else {},
        companion=_companion(path) if is_part else None,
    )
    return Subject(folder or path, f"folder of a {kind}" if folder else kind, [found], faults)


def _safetensors_config(
    path: Path, metadata: Mapping[str, str], faults: list[str]
) -> tuple[dict[str, Any], str]:
    """The configuration in the metadata or beside the file, and where it was found."""
    if "config" in metadata:
        try:
            return stated_config(metadata, path), "the metadata"
        except CheckpointError as error:
            faults.append(f"{error}; it is not used")
            return {}, ""
    beside = path.with_name("config.json")
    if not beside.is_file():
        return {}, ""
    try:
        return read_json_table(beside), "config.json beside it"
    except CheckpointError as error:
        faults.append(f"{error}; it is not used")
        return {}, ""


def _what_is(path: Path, tensors: Mapping[str, Any]) -> tuple[NetName, str, Form]:
    """The net that a safetensors file holds."""
    if is_discriminator(tensors):
        return "discriminator", "discriminator", "part"
    if is_generator(tensors):
        if path.name == _GENERATOR:
            return "generator", "generator of a base", "part"
        return "generator", "voice" if has_posterior(tensors) else "exported voice", "voice"
    if tensors and all(name.startswith(_ENCODER_STARTS) for name in tensors):
        return "content encoder", "content encoder", "part"
    refuse_others(tensors, path)
    raise CheckpointError(
        f"{path}: holds no generator, discriminator or content encoder that mlx_vits knows; give "
        "a file of GPT-SoVITS's SoVITS stage or of mlx_vits"
    )


def _read_base(path: Path) -> Subject:
    subject = _read_safetensors(path / _GENERATOR)
    subject.path, subject.kind = path, "base, to fine-tune from"
    discriminator = path / _DISCRIMINATOR
    if discriminator.is_file():
        try:
            other = _read_safetensors(discriminator)
            subject.nets += other.nets
        except CheckpointError as error:
            subject.faults.append(str(error))
    encoder = path / "content_encoder"
    if encoder.is_dir():
        try:
            file = content_encoder_file(encoder)
            subject.parts[str(file.relative_to(path))] = f"content encoder, {_tensor_count(file)}"
        except CheckpointError as error:
            subject.faults.append(str(error))
    else:
        subject.faults.append(
            f"{path}: has no content_encoder; training from it needs clips that are prepared "
            "already, or --content-encoder"
        )
    for file in sorted((path / "speaker_encoder").glob("*")):
        subject.parts[str(file.relative_to(path))] = "speaker encoder"
    subject.downloads = _read_checksums(path / _CHECKSUMS, subject.faults)
    return subject


def _tensor_count(file: Path) -> str:
    size = f"{file.stat().st_size / 1e6:.2f} MB"
    if file.suffix != ".safetensors":
        return size
    return f"{len(read_header(file).names)} tensors, {size}"


def _read_checksums(path: Path, faults: list[str]) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    try:
        values: Any = read_json(path, Any, error=CheckpointError, cure=_UNTOLD)
        rows = values.get("files") if isinstance(values, dict) else values
        kind = list[dict[str, Any]]
        return build_record(kind, rows, f"{path}:", error=CheckpointError, cure=_UNTOLD)
    except CheckpointError as error:
        faults.append(str(error))
        return None


def _read_run(path: Path) -> Subject:
    """A run's folder: its voice, or before there is one, its last state."""
    faults: list[str] = []
    run = _run_info(path, faults)
    last = path / CHECKPOINTS / LAST
    if last.is_file():
        try:
            run["place"] = asdict(read_place(read_header(last).metadata, last))
        except CheckpointError as error:
            faults.append(str(error))
    voice = path / f"{run.get('voice')}.safetensors"
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.pth")])
    if not voice.is_file():
        voice = next((file for file in files if file.suffix == ".safetensors"), last)
    if not voice.is_file():
        reason = (
            faults[0] if faults else f"{path}: the run has no checkpoint yet; go on with --resume"
        )
        raise CheckpointError(reason)
    subject = _read_safetensors(voice)
    subject.path, subject.kind = path, "run of mlx_vits, a fine-tune"
    subject.faults = [*faults, *subject.faults]
    subject.run = (subject.run or {}) | run
    for file in [*files, path / CHECKPOINTS / BEST, last]:
        if file.is_file():
            words = f"{file.stat().st_size / 1e6:.2f} MB"
            subject.parts[str(file.relative_to(path))] = words
    return subject


def _run_info(folder: Path, faults: list[str]) -> dict[str, Any]:
    """What `run.json` holds, or as much of it as can be used."""
    try:
        return asdict(RunInfo.read(folder))
    except CheckpointError as error:
        faults.append(str(error))
    with contextlib.suppress(CheckpointError):
        known = {f.name for f in fields(RunInfo)}
        values = read_json_table(folder / RUN_FILE)
        return {n: value for n, value in values.items() if n in known and isinstance(value, str)}
    return {}


def _read_state(path: Path) -> Subject:
    """Both nets and both optimizers of a run, as `run.py` writes them."""
    state = read_run_state(path, finite=False)  # it is told of, not refused
    faults: list[str] = []
    run: dict[str, Any] = {"place": asdict(state.place)}
    config: dict[str, Any] = {}
    folder = path.absolute().parent.parent
    if is_run(folder):
        run = _run_info(folder, faults) | run
        # A state states no configuration; without the voice's, sizes are told by the tensors.
        with contextlib.suppress(CheckpointError):
            voice = folder / f"{run.get('voice')}.safetensors"
            config = stated_config(read_header(voice).metadata, voice)
    nets = [
        _state_net(path, state, "generator", config),
        _state_net(path, state, "discriminator", {}),
    ]
    kind = "state of a run, to resume it from"
    return Subject(path, kind, [net for net in nets if net.tensors], faults, run)


def _state_net(path: Path, state: RunState, net: NetName, config: dict[str, Any]) -> Net:
    parameters = _flat(state.trees[net])
    arrays = {name: a for name, a in parameters.items() if isinstance(a, mx.array)}
    tree = state.trees["optimizer_g" if net == "generator" else "optimizer_d"]
    place = state.place
    return Net(
        net,
        f"{net} of a run's state",
        "state",
        path,
        "safetensors file, in the form of mlx_vits's own checkpoints",
        upstream_tensors(arrays),
        config,
        "the run's voice" if config else "",
        f"{place.epoch}epoch_{place.step}iteration",
        _claims(config),
        optimizer=OptimizerFile(_flat(tree), []),
    )


def _flat(tree: Any) -> dict[str, Any]:
    leaves: Any = tree_flatten(tree)
    return dict(leaves)
