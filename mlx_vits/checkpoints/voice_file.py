"""Read and write a voice: upstream's `.pth`, one safetensors file with metadata, or a folder.

Every form uses upstream's names and PyTorch's axes.

Source: GPT-SoVITS `process_ckpt.py` (`savee`, `load_sovits_new`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.contents import complete_config, refuse_others
from mlx_vits.checkpoints.tensors import read_tensors, to_numpy, write_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.checkpoints.upstream import V2_LEAST_BYTES, VERSION_CODES, UpstreamFile, read_upstream
from mlx_vits.config import CONFIG_FILE, Config
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import atomic_write, fresh_folder, replace_folder, sweep
from mlx_vits.system.json_files import parse_json

WEIGHTS_FILE = "weights.safetensors"  # in the folder of a voice, beside its configuration
GENERATOR_FILE = "generator.safetensors"  # in that of a base
_FOLDER_FILES = {CONFIG_FILE, WEIGHTS_FILE}
_LEFT_OUT = "enc_q"  # an exported voice has no posterior encoder

# Keys that inference reads besides the sections, with upstream's defaults.
_EXPORT_DEFAULTS = {
    "s2_ckpt_dir": "logs/s2/big2k1",
    "content_module": "cnhubert",
    "save_weight_dir": "SoVITS_weights",
    "pretrain": None,
    "resume_step": None,
}


class VoiceFile(NamedTuple):
    """A generator's tensors and configuration.

    Attributes:
        config: with `reduced_dims` matching the tensors.
        tensors: numpy or MLX arrays, in PyTorch's axes.
        info: training progress in upstream's words ("8epoch_64iteration"), or "".
        source: the file, for messages.
    """

    config: Config
    tensors: Mapping[str, Any]
    info: str
    source: Path


def read_voice(path: str | Path) -> VoiceFile:
    """Read a voice or a pretrained generator.

    Args:
        path: a `.pth`, a `.safetensors` with metadata, or a folder with `config.json` and
            `weights.safetensors` (a base has `generator.safetensors`).

    Raises:
        CheckpointError: the file is missing, damaged, refused, or not a generator.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return voice_of(read_upstream(path))


def _read_folder(path: Path) -> VoiceFile:
    config = Config.read(path / CONFIG_FILE)
    for name in (WEIGHTS_FILE, GENERATOR_FILE):
        if (path / name).is_file():
            file = read_tensors(path / name)
            refuse_others(file.tensors, path / name)
            return VoiceFile(config, file.tensors, file.metadata.get("info", ""), path / name)
    raise CheckpointError(f"{path}: has a {CONFIG_FILE} but no {WEIGHTS_FILE} beside it")


def _read_safetensors(path: Path) -> VoiceFile:
    file = read_tensors(path)
    config = complete_config(stated_config(file.metadata, path), file.tensors, path)
    return VoiceFile(config, file.tensors, file.metadata.get("info", ""), path)


def stated_config(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Read the configuration in the metadata of a voice's safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if "config" not in metadata:
        raise CheckpointError(
            f"{path}: has no configuration in its metadata; put a config.json beside it in a "
            "folder, as weights.safetensors, and give the folder"
        )
    return parse_json(
        metadata["config"],
        dict[str, Any],
        f"{path}: the configuration in its metadata",
        error=CheckpointError,
        cure="copy or download the file again",
    )


def voice_of(file: UpstreamFile) -> VoiceFile:
    """Return the generator in a `.pth`.

    Raises:
        CheckpointError: it is a discriminator, or its tensors and configuration disagree.
    """
    if file.net != "generator":
        raise CheckpointError(
            f"{file.path}: is a discriminator, not a voice; give a generator (s2G, G_ or an "
            "exported voice)"
        )
    try:
        config = complete_config(file.config, file.tensors, file.path)
    except CheckpointError as error:
        if file.config or file.form == "resume":
            raise
        raise CheckpointError(
            f"{error}; it states no configuration: save it in PyTorch as "
            "{'weight': ..., 'config': ..., 'info': ...}, with that of the voice it comes from"
        ) from error
    return VoiceFile(config, file.tensors, file.info, file.path)


def write_voice(
    path: str | Path,
    state: Mapping[str, mx.array],
    config: Config,
    *,
    info: str,
    name: str,
    whole: bool = False,
) -> None:
    """Write a voice in the form given by the path.

    Args:
        path: `.pth` for upstream's export (fp16, without enc_q), `.safetensors` for one file with
            metadata, anything else for a folder with `config.json` and `weights.safetensors`.
        state: from `state_of`, with enc_q.
        info: training progress ("8epoch_64iteration").
        name: of the voice, for the configuration.
        whole: write a `.pth` as a pretrained generator instead, with every tensor in its own
            precision, which GPT-SoVITS can train from but not speak with.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in ("", ".pth", ".safetensors") and not path.is_dir():
        raise CheckpointError(
            f"{path}: a voice is written as .pth, as .safetensors or as a folder, whose name has "
            "no ending; choose one of them"
        )
    sweep(path.parent, below=False)
    if path.suffix == ".pth":
        _write_pth(path, state, config, info, name, whole)
    elif path.suffix == ".safetensors":
        metadata = {
            "config": json.dumps(_stated(config)),
            "version": config.version,
            "info": info,
            "format": "pt",
        }
        write_tensors(path, state, metadata)
    else:
        _write_folder(path, state, config, info)


def _write_folder(path: Path, state: Mapping[str, mx.array], config: Config, info: str) -> None:
    if path.exists() and not (path.is_dir() and {p.name for p in path.iterdir()} <= _FOLDER_FILES):
        raise CheckpointError(f"{path}: holds something else; choose another name")
    with fresh_folder(path) as fresh:
        with atomic_write(fresh / CONFIG_FILE) as file:
            file.write(json.dumps(_stated(config), indent=1).encode())
        write_tensors(fresh / WEIGHTS_FILE, state, {"info": info, "format": "pt"})
        replace_folder(fresh, path)


def _stated(config: Config) -> dict[str, Any]:
    """Return the configuration with `reduced_dims` spelled out, also at full size."""
    return config.to_dict() | {"reduced_dims": dataclasses.asdict(config.reduced_dims)}


def _write_pth(
    path: Path,
    state: Mapping[str, mx.array],
    config: Config,
    info: str,
    name: str,
    whole: bool,
) -> None:
    if whole:
        weight = {key: to_numpy(array) for key, array in state.items()}
    else:
        weight = {}
        for key, array in state.items():
            if _LEFT_OUT not in key:
                half = array.astype(mx.float16)
                if not mx.all(mx.isfinite(half)).item():
                    raise CheckpointError(
                        f"{path}: cannot be written, {key} holds numbers that are too large for "
                        "fp16, which GPT-SoVITS's voices are in; write a .safetensors instead"
                    )
                weight[key] = np.array(half)
    values = _EXPORT_DEFAULTS | config.to_dict() | {"name": name, "version": config.version}
    full_size_v2 = config.version == "v2" and not config.is_reduced and not whole
    write_torch_archive(
        path,
        {"weight": weight, "config": values, "info": info},
        # Upstream opens pretrained files with PyTorch directly, so these keep their `PK`.
        version_code=None if whole else VERSION_CODES.get(config.version),
        pad_to=V2_LEAST_BYTES if full_size_v2 else None,
    )
