"""A voice on disk: upstream's `.pth`, one safetensors file with metadata, or a folder.

Source: GPT-SoVITS `process_ckpt.py` (`savee`, `load_sovits_new`). Tensors are under upstream's
names and in PyTorch's axes in every form.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.config import Config, ReducedDims
from mlx_vits.errors import CheckpointError
from mlx_vits.files import atomic_write, make_folder, replace_folder, temporary_sibling

# Upstream takes a file that starts with `PK` for v1 below this size, and for v2 from it on.
_V2_LEAST_BYTES = 82978 * 1024
_VERSION_CODES = {"v2Pro": "05", "v2ProPlus": "06"}
_FOLDER_FILES = {"config.json", "weights.safetensors"}
_LEFT_OUT = "enc_q"  # an exported voice has no posterior encoder

# What inference reads besides the sections, with upstream's values for a run without a resume.
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
        config: with `reduced_dims` as the tensors have them.
        tensors: numpy or MLX arrays, PyTorch's axes.
        info: how far it was trained, in upstream's words ("8epoch_64iteration"), or "".
        source: the file, for messages.
    """

    config: Config
    tensors: Mapping[str, Any]
    info: str
    source: Path


def read_voice(path: str | Path) -> VoiceFile:
    """Reads a voice or a pretrained generator.

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
    return _read_pth(path)


def _read_folder(path: Path) -> VoiceFile:
    config = Config.read(path / "config.json")
    for name in ("weights.safetensors", "generator.safetensors"):
        if (path / name).is_file():
            file = read_tensors(path / name)
            return VoiceFile(config, file.tensors, file.metadata.get("info", ""), path / name)
    raise CheckpointError(f"{path}: has a config.json but no weights.safetensors beside it")


def _read_safetensors(path: Path) -> VoiceFile:
    file = read_tensors(path)
    if "config" not in file.metadata:
        raise CheckpointError(
            f"{path}: has no configuration in its metadata; put a config.json beside it in a "
            "folder, as weights.safetensors, and give the folder"
        )
    try:
        values = json.loads(file.metadata["config"])
    except ValueError as error:
        raise CheckpointError(f"{path}: the configuration in its metadata is damaged") from error
    return _voice_of(values, file.tensors, file.metadata.get("info", ""), path)


def _read_pth(path: Path) -> VoiceFile:
    content = read_torch_archive(path)
    if not isinstance(content, dict) or not isinstance(content.get("weight"), dict):
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else "something else"
        raise CheckpointError(
            f"{path}: is not a SoVITS voice, which holds `weight` and `config`; it holds {keys}"
        )
    config = content.get("config") or {}
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its configuration is damaged")
    return _voice_of(config, content["weight"], str(content.get("info", "")), path)


def _voice_of(
    values: Mapping[str, Any], tensors: Mapping[str, Any], info: str, path: Path
) -> VoiceFile:
    """Completes a configuration by what the tensors show."""
    bad = [name for name, value in tensors.items() if not hasattr(value, "shape")]
    if "enc_p.text_embedding.weight" not in tensors or bad:
        raise CheckpointError(f"{path}: is not a SoVITS generator (no enc_p.text_embedding)")
    model = values.get("model") or {}
    if not isinstance(model, Mapping):
        raise CheckpointError(f"{path}: `model` of the configuration is not a table")
    version = detect_version(tensors)
    values = dict(values) | {"model": dict(model) | {"version": version}}
    if "reduced_dims" not in values:
        try:
            values["reduced_dims"] = dataclasses.asdict(infer_dims(tensors, version))
        except (KeyError, IndexError) as error:
            raise CheckpointError(f"{path}: lacks {error}, or has it misshapen") from error
    return VoiceFile(Config.from_dict(values, source=str(path)), tensors, info, path)


def detect_version(tensors: Mapping[str, Any]) -> str:
    """The version by content: rows of the phoneme table, tensors and widths of Pro models."""
    if "sv_emb.weight" in tensors:
        first = tensors.get("dec.ups.0.weight_v")
        return "v2ProPlus" if first is not None and first.shape[-1] == 20 else "v2Pro"
    return "v1" if tensors["enc_p.text_embedding.weight"].shape[0] == 322 else "v2"


def infer_dims(tensors: Mapping[str, Any], version: str) -> ReducedDims:
    """The sizes that upstream hard-codes, from the tensors of a file that does not state them.

    Raises:
        KeyError, IndexError: a tensor is missing, or has too few axes.
    """

    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensors[name].shape)

    def count(pattern: str) -> int:
        return len({m.group(1) for name in tensors if (m := re.match(pattern, name))})

    found = {
        "ssl_dim": shape("ssl_proj.weight")[0],
        "mrte_hidden": shape("enc_p.mrte.c_pre.weight")[0],
        "codebook_size": shape("quantizer.vq.layers.0._codebook.embed")[0],
        "style_hidden": shape("ref_enc.spectral.0.fc.weight")[0],
        "ref_spec_bins": shape("ref_enc.spectral.0.fc.weight")[1],
        "style_kernel": shape("ref_enc.temporal.0.conv1.conv.weight")[2],
        "text_vocab": shape("enc_p.text_embedding.weight")[0],
        "attn_window": shape("enc_p.encoder_ssl.attn_layers.0.emb_rel_k")[1] // 2,
        "flow_n_flows": count(r"flow\.flows\.(\d+)\.pre\.weight"),
        "flow_wn_layers": count(r"flow\.flows\.0\.enc\.in_layers\.(\d+)\."),
        "flow_kernel": shape("flow.flows.0.enc.in_layers.0.weight_v")[2],
        "sv_dim": shape("sv_emb.weight")[1] if "sv_emb.weight" in tensors else 0,
    }
    if "enc_q.enc.in_layers.0.weight_v" in tensors:
        found["enc_q_wn_layers"] = count(r"enc_q\.enc\.in_layers\.(\d+)\.")
        found["enc_q_kernel"] = shape("enc_q.enc.in_layers.0.weight_v")[2]
    return dataclasses.replace(ReducedDims.full_size(version), **found)


def write_voice(
    path: str | Path, state: Mapping[str, mx.array], config: Config, *, info: str, name: str
) -> None:
    """Writes a voice in the form that the path asks for.

    Args:
        path: `.pth` gives upstream's export (fp16, without enc_q), `.safetensors` one file with
            metadata, anything else a folder with `config.json` and `weights.safetensors`.
        state: from `state_of`, with enc_q.
        info: how far it was trained ("8epoch_64iteration").
        name: of the voice, for the configuration.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".pth":
        _write_pth(path, state, config, info, name)
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
    fresh = temporary_sibling(path)
    try:
        make_folder(fresh)
        with atomic_write(fresh / "config.json") as file:
            file.write(json.dumps(_stated(config), indent=1).encode())
        write_tensors(fresh / "weights.safetensors", state, {"info": info, "format": "pt"})
        replace_folder(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _stated(config: Config) -> dict[str, Any]:
    """The configuration with `reduced_dims` spelled out, full-size models included."""
    return config.to_dict() | {"reduced_dims": dataclasses.asdict(config.reduced_dims)}


def _write_pth(
    path: Path, state: Mapping[str, mx.array], config: Config, info: str, name: str
) -> None:
    weight = {
        key: np.array(array.astype(mx.float16))
        for key, array in state.items()
        if _LEFT_OUT not in key
    }
    values = _EXPORT_DEFAULTS | config.to_dict() | {"name": name, "version": config.version}
    full_size_v2 = config.version == "v2" and not config.is_reduced
    write_torch_archive(
        path,
        {"weight": weight, "config": values, "info": info},
        version_code=_VERSION_CODES.get(config.version),
        pad_to=_V2_LEAST_BYTES if full_size_v2 else None,
    )
