"""Both converters: every version, both nets, every form, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_vits
from mlx_vits.checkpoints.base import load_discriminator
from mlx_vits.checkpoints.convert import mlx_to_torch, torch_to_mlx
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.errors import CheckpointError
from tests.support.goldens import ROOT, golden
from tests.support.tiny import make_base

VERSIONS = ["v1", "v2", "v2Pro", "v2ProPlus"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {v: make_base(root / v, version=v).generator for v in VERSIONS}


def _golden(version: str) -> Path:
    return golden(f"sovits_{version}", f"golden_{version}_e8_s64.pth")


def _assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Names in order, precision, and every bit."""
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("form", ["voice.safetensors", "voice"])
def test_a_golden_pth_goes_to_mlx_and_back(version: str, form: str, tmp_path: Path) -> None:
    source = _golden(version)
    theirs = read_torch_archive(source)
    words = f"{version} voice, {len(theirs['weight'])} tensors"
    assert torch_to_mlx(source, tmp_path / form) == words
    assert mlx_to_torch(tmp_path / form, tmp_path / "back.pth") == f"{version} voice"
    ours = read_torch_archive(tmp_path / "back.pth")
    _assert_same(ours["weight"], theirs["weight"])
    assert ours["info"] == theirs["info"]
    code = {"v2Pro": b"05", "v2ProPlus": b"06"}.get(version, b"PK")
    assert (tmp_path / "back.pth").read_bytes()[:2] == code


def _pretrained(path: Path, base: Path, precision: Any) -> dict[str, Any]:
    """Writes a file as upstream's s2G, in a precision; its content."""
    voice = mlx_vits.load(base)
    state = state_of(voice.model)
    weight = {name: np.array(array.astype(precision)) for name, array in state.items()}
    config = voice.config.to_dict()
    config["model"]["version"] = "v2"  # whatever the file claims, its tensors decide
    content = {"weight": weight, "config": config, "info": "pretrained"}
    write_torch_archive(path, content)
    return content


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", [mx.float16, mx.float32])
def test_a_pretrained_generator_keeps_its_precision_and_its_posterior(
    version: str, precision: Any, bases: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "s2G.pth"
    theirs = _pretrained(source, bases[version], precision)
    torch_to_mlx(source, tmp_path / "g.safetensors")
    assert mlx_to_torch(tmp_path / "g.safetensors", tmp_path / "back.pth", whole=True) == (
        f"{version} generator"
    )
    ours = read_torch_archive(tmp_path / "back.pth")
    _assert_same(ours["weight"], theirs["weight"])
    assert any(name.startswith("enc_q.") for name in ours["weight"])
    assert (ours["config"]["version"], ours["info"]) == (version, "pretrained")
    assert (tmp_path / "back.pth").read_bytes()[:2] == b"PK"  # PyTorch opens it as it is


@pytest.mark.parametrize("version", ["v2", "v2Pro"])
@pytest.mark.parametrize("precision", [mx.float16, mx.float32])
def test_a_discriminator_goes_both_ways(
    version: str, precision: Any, bases: dict[str, Path], tmp_path: Path
) -> None:
    config = mlx_vits.load(bases[version]).config
    tensors = state_of(load_discriminator(bases[version] / "discriminator.safetensors", config))
    theirs = {name: np.array(array.astype(precision)) for name, array in tensors.items()}
    write_torch_archive(tmp_path / "s2D.pth", {"weight": theirs})
    words = f"discriminator of {'v2Pro and v2ProPlus' if 'Pro' in version else 'v1 and v2'}"
    said = torch_to_mlx(tmp_path / "s2D.pth", tmp_path / "d.safetensors")
    assert said == f"{words}, {len(theirs)} tensors"
    assert mlx_to_torch(tmp_path / "d.safetensors", tmp_path / "d.pth").startswith(words)
    _assert_same(read_torch_archive(tmp_path / "d.pth")["weight"], theirs)


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        torch_to_mlx(tmp_path / "text.pth", tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"has to end in \.pth"):
        mlx_to_torch(tmp_path / "a.safetensors", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_discriminator_that_lacks_a_layer_is_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    tensors = read_tensors(bases["v2"] / "discriminator.safetensors").tensors
    weight = {name: np.array(a) for name, a in tensors.items() if "convs.3" not in name}
    write_torch_archive(tmp_path / "d.pth", {"weight": weight})
    with pytest.raises(CheckpointError, match=r"d\.pth: lacks discriminators\.0\.convs\.3"):
        torch_to_mlx(tmp_path / "d.pth", tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


def test_a_converter_never_writes_over_anything(bases: dict[str, Path], tmp_path: Path) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_text("precious")
    with pytest.raises(CheckpointError, match="is there already"):
        torch_to_mlx(_golden("v2"), taken)
    with pytest.raises(CheckpointError, match="is there already"):
        mlx_to_torch(bases["v2"], _golden("v2"))
    assert taken.read_text() == "precious"
    mlx_to_torch(bases["v2"] / "discriminator.safetensors", tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match=r"needs a name in \.safetensors"):
        torch_to_mlx(tmp_path / "d.pth", tmp_path / "folder")


@pytest.mark.parametrize("script", ["convert_torch_to_mlx", "convert_mlx_to_torch"])
def test_the_scripts_run(script: str, bases: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(_golden("v2")), str(tmp_path / "out.safetensors")]
    if script == "convert_mlx_to_torch":
        arguments = ["--whole", str(bases["v2"]), str(tmp_path / "out.pth")]
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert mlx_vits.load(arguments[-1]).version == "v2"
