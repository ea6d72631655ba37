"""Cases for what lies above the zip: whole files whose contents are not what a model needs.

Values of another type, tensors that are missing, misshapen or no tensors, names that are no text,
sections that are no tables: in each form of a `.pth`, in safetensors, and in a folder.
"""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.base import (
    load_content_encoder,
    load_discriminator,
    load_generator,
)
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.checkpoints.upstream_optimizer import (
    Moments,
    Rate,
    parameter_groups,
    to_upstream,
)
from mlx_vits.checkpoints.upstream_run import read_upstream_run
from mlx_vits.checkpoints.voice_file import read_voice
from mlx_vits.config import Config
from mlx_vits.models.hubert import HubertConfig, HubertModel
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from tests.support.fuzz_archives import damage, pick
from tests.support.fuzzing import Kind
from tests.support.tiny import CONFIG

CODES = {"v2Pro": "05", "v2ProPlus": "06"}


@cache
def configuration(version: str) -> Config:
    small: Any = CONFIG
    model, dims = small["model"] | {"version": version}, dict(small["reduced_dims"])
    if "Pro" in version:
        model |= {"gin_channels": 24}
        dims |= {"sv_dim": 32}
    if version == "v2ProPlus":
        model |= {"upsample_kernel_sizes": [20, 16, 8, 2, 2]}
    return Config.from_dict({"train": small["train"], "model": model, "reduced_dims": dims})


@cache
def weights(version: str, net: str) -> dict[str, np.ndarray]:
    kind = SynthesizerTrn if net == "generator" else MultiPeriodDiscriminator
    shapes = expected_shapes(kind(configuration(version)))
    return {name: np.ones(shape, np.float16) for name, shape in shapes.items()}


def _resume(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    moment = {"step": np.array(3, "f4"), "exp_avg": np.zeros(2, "f4")}
    group = {"lr": 1e-4, "betas": (0.8, 0.99), "params": [0, 1]}
    optimizer = {"state": {0: moment, 1: dict(moment)}, "param_groups": [group]}
    return {"model": tensors, "iteration": 8, "optimizer": optimizer, "learning_rate": 1e-4}


def content(draw: np.random.Generator, net: str) -> tuple[dict[str, Any], str | None]:
    """What a good file holds, and its version code."""
    version = pick(draw, ("v2", "v2", "v1", "v2Pro", "v2ProPlus"))
    tensors = dict(weights(version, net))
    if draw.integers(0, 4) == 0:
        return _resume(tensors), None
    if net == "discriminator":
        return {"weight": tensors}, None
    if draw.integers(0, 2):
        tensors = {name: a for name, a in tensors.items() if "enc_q" not in name}
    config = configuration(version).to_dict() | {"name": "voice", "version": version}
    if draw.integers(0, 2):
        config.pop("reduced_dims")
    found = {"weight": tensors, "config": config, "info": "8epoch_64iteration"}
    return copy.deepcopy(found), pick(draw, (None, CODES.get(version)))


JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1000, 2**20, 2**31, 2**40, 2**63, 10**600, 0.5, -1.0,
    float("nan"), float("inf"), "", "v3", "v2", "1", "50hz", "a\nb\x1b[2J", "\ud800", "x" * 5000,
    [], {}, (), [1], [[]], {"a": 1}, {1: 2}, [1, "a"], [10**9] * 5, [2] * 40, [[1] * 3000] * 3,
)  # fmt: skip
TEXTS = ("", "0", "a\nb", "\ud800", "weight", "enc_p.", "é" * 3000, "cfm.x", "discriminators.9.x")


def _array(draw: np.random.Generator) -> np.ndarray:
    shape = [int(n) for n in draw.integers(0, 5, int(draw.integers(0, 6)))]
    return np.ones(shape, pick(draw, ("f2", "f4", "f8", "i8", "u1", "?")))


def _other_array(array: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    kind = draw.integers(0, 7)
    if kind == 0:
        return array.T
    if kind == 1:
        return np.atleast_1d(array)[:-1]
    if kind == 2:
        return array[None]
    if kind == 3:
        return array.reshape(-1)
    if kind == 4:
        return array.astype(pick(draw, ("f4", "f8", "i8", "i4", "u1", "?")))
    if kind == 5:
        return np.full(array.shape, pick(draw, (np.nan, np.inf, -65504)), np.float32)
    return _array(draw)


def _places(tree: Any, draw: np.random.Generator) -> tuple[Any, Any]:
    """A table or list somewhere in the tree, and a key of it."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = pick(draw, keys)
        below = tree[key]
        if not isinstance(below, (dict, list)) or not below or draw.random() < 0.15:
            return tree, key
        tree = below


def disturb(tree: Any, draw: np.random.Generator, *, plain: bool = False) -> None:
    """One fault somewhere in the tree, which is changed.

    Args:
        plain: without arrays, for what becomes JSON.
    """
    table, key = _places(tree, draw)
    value, kind = table[key], int(draw.integers(0, 8))
    if kind < 3 or (plain and kind < 5):
        table[key] = copy.deepcopy(pick(draw, JUNK))
    elif kind == 3 and isinstance(value, np.ndarray):
        table[key] = _other_array(value, draw)
    elif kind == 4:
        table[key] = _array(draw)
    elif kind == 5:
        del table[key]
    elif kind == 6 and isinstance(table, dict):
        table[pick(draw, TEXTS if plain else (*TEXTS, 0, 3))] = table.pop(key)
    elif isinstance(table, dict) and not isinstance(value, np.ndarray):
        table[key] = pick(draw, ([value], {"a": value}, str(value)[:3000], (value, value)))
    else:
        other = pick(draw, table if isinstance(table, dict) else range(len(table)))
        table[key], table[other] = table[other], table[key]


def _disturbed(tree: Any, draw: np.random.Generator, *, plain: bool = False) -> Any:
    for _ in range(draw.integers(1, 4)):
        if tree:
            disturb(tree, draw, plain=plain)
    return tree


def speak(path: Path) -> Any:
    file = read_voice(path)
    json.dumps(file.config.to_dict())
    return load_generator(file, consume=True)


def generators(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    tree, code = content(draw, "generator")
    write_torch_archive(path, _disturbed(tree, draw), version_code=code)
    return speak


def configurations(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    """Good tensors; a `.pth` whose configuration is disturbed."""
    tree, code = content(draw, "generator")
    if "config" in tree:
        tree["config"] = _disturbed(tree["config"], draw)
    write_torch_archive(path, tree, version_code=code)
    return speak


def discriminators(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    tree, code = content(draw, "discriminator")
    write_torch_archive(path, _disturbed(tree, draw), version_code=code)
    config = configuration(pick(draw, ("v2", "v2Pro")))
    return lambda path: load_discriminator(path, config)


def safetensors(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    """One file whose header, table or metadata is disturbed, or whose bytes are."""
    file = path.with_suffix(".safetensors")
    state = {name: mx.array(array) for name, array in weights("v2", "generator").items()}
    values: Any = configuration("v2").to_dict()
    kind = draw.integers(0, 3)
    if kind == 0:
        values = _disturbed(values, draw, plain=True)
    text = json.dumps(values).replace("\\ud800", "?")
    write_tensors(file, state, {"config": text, "info": "8epoch"})
    whole = file.read_bytes()
    if kind == 1:
        (length,) = struct.unpack_from("<Q", whole)
        header = _disturbed(json.loads(whole[8 : 8 + length]), draw, plain=True)
        new = json.dumps(header).replace("\\ud800", "?").encode()
        file.write_bytes(struct.pack("<Q", len(new)) + new + whole[8 + length :])
    elif kind == 2:
        share = pick(draw, (len(whole), 4000, 30_000))
        file.write_bytes(damage(whole[:share], draw) + whole[share:])
    return lambda path: speak(path.with_suffix(".safetensors"))


def folders(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    """A folder whose `config.json` is disturbed."""
    folder = path.parent / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    state = {name: mx.array(array) for name, array in weights("v2", "generator").items()}
    write_tensors(folder / "weights.safetensors", state)
    values = json.dumps(_disturbed(configuration("v2").to_dict(), draw, plain=True)).encode()
    kind = draw.integers(0, 16)
    if kind < 4:
        values = damage(values, draw)
    elif kind == 4:
        values = values[:-1] + b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (folder / "config.json").write_bytes(values)
    return lambda path: speak(path.parent / "folder")


@cache
def encoder() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Configuration and tensors of a small content encoder."""
    values = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    shapes = expected_shapes(HubertModel(HubertConfig.from_dict(values)))
    return values, {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def content_encoders(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    """A folder whose `config.json` or whose tensors are disturbed."""
    values, tensors = copy.deepcopy(encoder())
    if draw.integers(0, 2):
        values = _disturbed(values, draw, plain=True)
    else:
        tensors = _disturbed(tensors, draw)
    (path.parent / "config.json").write_text(json.dumps(values))
    write_torch_archive(path.parent / "pytorch_model.bin", tensors)
    return lambda path: load_content_encoder(path.parent)


@cache
def resume_content(net: str) -> dict[str, Any]:
    """What a resume file of the small v2 model holds after three updates."""
    config = configuration("v2")
    model = SynthesizerTrn(config) if net == "generator" else MultiPeriodDiscriminator(config)
    names = [name for group in parameter_groups(model) for name in group]
    ones = {name: mx.ones(shape) for name, shape in expected_shapes(model).items()}
    trained = {name: ones[name] for name in names if not name.startswith("ssl_proj.")}
    rates = [Rate(1e-4, 1e-4)] * len(parameter_groups(model))
    optimizer = to_upstream(model, Moments(3, trained, trained), rates, config.train)
    arrays = {name: np.array(array) for name, array in ones.items()}
    return {"model": arrays, "iteration": 8, "optimizer": optimizer, "learning_rate": 1e-4}


def resume_runs(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
    """Both files of a run of GPT-SoVITS's trainer, and what lies beside them; one is disturbed."""
    folder = path.parent / "logs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    values = configuration("v2").to_dict()
    contents = [copy.deepcopy(resume_content(net)) for net in ("generator", "discriminator")]
    side: dict[str, Any] = {"sha256": {}, "place": {"step": 3, "epoch": 9}, "run": {"voice": "me"}}
    kind = int(draw.integers(0, 8))
    if kind < 5:
        chosen = contents[kind % 2]
        _disturbed(chosen if kind == 4 else chosen["optimizer"], draw)
    elif kind == 5:
        _disturbed(values, draw, plain=True)
    else:
        _disturbed(side, draw, plain=True)
    (folder / "config.json").write_text(json.dumps(values))
    for letter, content in zip("GD", contents, strict=True):
        write_torch_archive(folder / f"{letter}_8.pth", content)
    if kind > 5:
        (folder / "mlx_vits.json").write_text(json.dumps(side))
    return lambda path: read_upstream_run(path.parent / "logs")


CONTENT_KINDS: dict[str, Kind] = {
    "generators": generators,
    "configurations": configurations,
    "discriminators": discriminators,
    "safetensors": safetensors,
    "folders": folders,
    "content encoders": content_encoders,
    "resume runs": resume_runs,
}
