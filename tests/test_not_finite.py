"""Weights that are no numbers are refused wherever they would be used, and the tensor is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_vits
from mlx_vits.checkpoints.base import load_content_encoder, load_discriminator
from mlx_vits.checkpoints.run import Place, read_run_state, write_run_state
from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.checkpoints.voice_file import read_voice, write_voice
from mlx_vits.errors import CheckpointError
from mlx_vits.models.hubert import HubertModel
from tests.support.looking import look_at, said_of
from tests.support.tiny import make_base

TENSOR = "dec.conv_pre.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("bases") / "v2"
    make_base(folder)
    return folder


def _refused(words: str, use: Any, *arguments: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        use(*arguments)
    assert words in str(caught.value), str(caught.value)


def _spoil(array: mx.array, value: float) -> mx.array:
    numbers = np.array(array.astype(mx.float32))
    numbers.reshape(-1)[-1] = value
    return mx.array(numbers)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["voice.pth", "voice.safetensors", "voice"])
def test_a_voice(name: str, value: float, base: Path, tmp_path: Path) -> None:
    file = read_voice(base)
    state = dict(file.tensors) | {TENSOR: _spoil(file.tensors[TENSOR], value)}
    path = tmp_path / name
    write_voice(path, state, file.config, info="", name="me", whole=name.endswith(".pth"))
    _refused(f"{TENSOR} holds NaN or infinity", mlx_vits.load, path)
    assert TENSOR in said_of(look_at(path).net)  # what it is can still be looked at


def test_numbers_beyond_fp32(base: Path, tmp_path: Path) -> None:
    file = read_voice(base)
    weight = {key: np.array(array) for key, array in file.tensors.items()}
    weight[TENSOR] = np.full(weight[TENSOR].shape, 1e300)
    content = {"weight": weight, "config": file.config.to_dict(), "info": ""}
    write_torch_archive(tmp_path / "voice.pth", content)
    _refused(f"{TENSOR} holds NaN or infinity", mlx_vits.load, tmp_path / "voice.pth")


@pytest.mark.parametrize("value", [0.0, 1e25])
def test_a_direction_without_a_length(value: float, base: Path, tmp_path: Path) -> None:
    file = read_voice(base)
    name = "dec.ups.0.weight_v"
    state = dict(file.tensors) | {name: mx.full(file.tensors[name].shape, value)}
    write_voice(tmp_path / "me.safetensors", state, file.config, info="", name="me")
    words = f"{name} has a channel of length 0 or infinity"
    _refused(words, mlx_vits.load, tmp_path / "me.safetensors")


def test_a_voice_that_does_not_fit_into_fp16(base: Path, tmp_path: Path) -> None:
    file = read_voice(base)
    state = dict(file.tensors) | {TENSOR: _spoil(file.tensors[TENSOR], 1e5)}
    write_voice(tmp_path / "me.safetensors", state, file.config, info="", name="me")
    voice = mlx_vits.load(tmp_path / "me.safetensors")
    words = f"{TENSOR} holds numbers that are too large for fp16"
    _refused(words, voice.save, tmp_path / "me.pth")
    assert not (tmp_path / "me.pth").exists()


def test_a_discriminator_and_a_content_encoder(base: Path, tmp_path: Path) -> None:
    config = read_voice(base).config
    judge = dict(read_tensors(base / "discriminator.safetensors").tensors)
    name = "discriminators.1.convs.0.weight_v"
    write_tensors(tmp_path / "d.safetensors", judge | {name: _spoil(judge[name], np.nan)})
    _refused(f"{name} holds NaN", load_discriminator, tmp_path / "d.safetensors", config)
    encoder = dict(read_tensors(base / "content_encoder/weights.safetensors").tensors)
    name = "feature_projection.projection.bias"
    write_tensors(tmp_path / "weights.safetensors", encoder | {name: _spoil(encoder[name], np.inf)})
    (tmp_path / "config.json").write_bytes((base / "content_encoder/config.json").read_bytes())
    _refused(f"{name} holds NaN", load_content_encoder, tmp_path)


@pytest.mark.parametrize("part", ["generator", "optimizer_d"])
def test_the_state_of_a_run(part: str, tmp_path: Path) -> None:
    trees: dict[str, Any] = {
        "generator": {"x": mx.ones(3)},
        "discriminator": {"x": mx.ones(3)},
        "optimizer_g": {"states": [{"x": {"m": mx.ones(3)}}]},
        "optimizer_d": {"x": {"m": mx.ones(3)}, "step": mx.array(3, mx.uint64)},
    }
    path = tmp_path / "last.safetensors"
    write_run_state(path, trees, Place(3))
    assert read_run_state(path).place.step == 3
    leaf = trees[part]["x"] if part.startswith("optimizer") else trees[part]
    name = "m" if part.startswith("optimizer") else "x"
    leaf[name] = mx.array([1, np.nan, 1])
    write_run_state(path, trees, Place(3))
    _refused(f"{part}/x", read_run_state, path)


def test_speech_that_overflows_is_no_silence(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights may be finite and too large for what they are multiplied with."""
    voice = mlx_vits.load(base)
    assert isinstance(voice.content_encoder, HubertModel)
    voice.model.update(
        {"dec": {"conv_pre": {"bias": voice.model.dec.conv_pre.bias + 3e38}}}, strict=False
    )
    wav = np.sin(np.arange(32000) / 20).astype(np.float32)
    _refused(
        "speaks NaN or infinity",
        mlx_vits.Voice(voice.model, content_encoder=voice.content_encoder).convert,
        wav,
        32000,
        "Hello there.",
    )
