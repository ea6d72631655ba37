"""GPTs go to GPT-SoVITS and come back: exported, converted, inspected."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

import mlx_vits
from mlx_vits.checkpoints.convert import mlx_to_torch, torch_to_mlx
from mlx_vits.checkpoints.gpt_file import is_gpt, read_gpt, write_gpt
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.cli import app
from mlx_vits.errors import CheckpointError
from tests.support.goldens import ROOT
from tests.support.tiny import make_base
from tests.support.tiny_gpt import add_gpt, tiny_gpt

PHONES, CODES, COUNT = list(range(9)), [3, 1, 4, 1, 5], 12


@pytest.fixture(scope="module")
def gpt() -> mlx_vits.GPT:
    """Of weights that fp16 holds, so that no form changes them."""
    model = tiny_gpt()
    halves = {k: v.astype(mx.float16).astype(mx.float32) for k, v in _flat(model)}
    model.load_weights(list(halves.items()))
    return mlx_vits.GPT(model)


def _flat(model: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    found: Any = tree_flatten(model.parameters())
    return list(found)


@pytest.fixture
def ckpt(gpt: mlx_vits.GPT, tmp_path: Path) -> Path:
    write_gpt(tmp_path / "me-e4.ckpt", state_of(gpt.model), gpt.config, info="GPT-e4")
    return tmp_path / "me-e4.ckpt"


def _tensors(path: Path) -> dict[str, bytes]:
    file = read_gpt(path)
    return {name: np.array(t, np.float32).tobytes() for name, t in file.tensors.items()}


def _run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.torch
def test_upstreams_own_rules_open_it_and_choose_the_same_codes(
    gpt: mlx_vits.GPT, ckpt: Path
) -> None:
    pytest.importorskip("torch")
    numbers = [",".join(map(str, values)) for values in (PHONES, CODES)]
    command = [sys.executable, "-m", "tests.support.upstream_gpt", str(ckpt), *numbers, str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    ours: list[int] = []
    loaded = mlx_vits.load_gpt(ckpt)
    for _ in range(COUNT):
        logits = loaded.logits(np.array([PHONES]), np.array([CODES + ours]))
        ours.append(int(np.argmax(logits[-1])))
    assert ours == json.loads(done.stdout)
    assert len(set(ours)) > 1


def test_there_and_back_changes_no_bit(ckpt: Path, tmp_path: Path) -> None:
    assert torch_to_mlx(ckpt, tmp_path / "folder") == "GPT of v2, 31 tensors"
    assert mlx_to_torch(tmp_path / "folder", tmp_path / "back.ckpt") == "GPT of v2, 31 tensors"
    assert _tensors(tmp_path / "folder") == _tensors(ckpt)
    one, other = (read_torch_archive(path) for path in (ckpt, tmp_path / "back.ckpt"))
    assert list(one["weight"]) == list(other["weight"])
    assert one["config"] == other["config"]
    assert one["info"] == other["info"] == "GPT-e4"


def test_the_weights_of_a_trainings_state(gpt: mlx_vits.GPT, tmp_path: Path) -> None:
    table = {f"model.{key}": np.array(value) for key, value in state_of(gpt.model).items()}
    state = {"state_dict": table, "hyper_parameters": {"config": gpt.config.to_dict()}}
    write_torch_archive(tmp_path / "epoch=14.ckpt", state)
    torch_to_mlx(tmp_path / "epoch=14.ckpt", tmp_path / "folder")
    mlx_to_torch(tmp_path / "folder", tmp_path / "me.ckpt")
    assert _tensors(tmp_path / "me.ckpt") == _tensors(tmp_path / "epoch=14.ckpt")


def test_export_takes_the_gpt_of_a_base_and_of_a_file(ckpt: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    add_gpt(tmp_path / "base")
    done = _run("export", tmp_path / "base", tmp_path / "own.ckpt")
    assert done.exit_code == 0, done.output
    assert read_gpt(tmp_path / "own.ckpt").info == "tiny"
    done = _run("export", ckpt, tmp_path / "folder")
    assert done.exit_code == 0, done.output
    assert is_gpt(tmp_path / "folder")
    assert _tensors(tmp_path / "folder") == _tensors(ckpt)


@pytest.mark.parametrize("name", ["me.pth", "me.safetensors", "me.onnx"])
def test_a_gpt_is_no_voice(ckpt: Path, tmp_path: Path, name: str) -> None:
    done = _run("export", ckpt, tmp_path / name)
    assert done.exit_code == 1
    assert f"{name}: a GPT is written as .ckpt, or as a folder" in done.stderr
    with pytest.raises(CheckpointError, match="a GPT is written as"):
        torch_to_mlx(ckpt, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_voice_is_no_gpt(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    _run("export", tmp_path / "base", tmp_path / "voice.pth")
    done = _run("export", tmp_path / "voice.pth", tmp_path / "me.ckpt")
    assert done.exit_code == 1
    assert "is a file of GPT-SoVITS's SoVITS stage" in done.stderr
    done = _run("export", tmp_path / "base", tmp_path / "me.ckpt")
    assert "this base has no GPT" in done.stderr


def _inspected(path: Path, *more: Any) -> Any:
    done = _run("inspect", path, "--json", *more)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_inspect_says_what_a_gpt_is(gpt: mlx_vits.GPT, ckpt: Path, tmp_path: Path) -> None:
    (net,) = _inspected(ckpt)["nets"]
    assert net["net"] == "GPT"
    assert net["kind"] == "exported GPT"
    assert net["version"]["version"] == "v2"
    assert net["sizes"] == {"layers": 2, "wide": 64, "heads": 2, "codes": 24, "phonemes": 732}
    assert net["trained"]["epochs"] == 4
    assert net["precisions"] == {"float16": 31}
    assert net["remarks"] == []
    assert [module["name"] for module in net["modules"]] == [
        "bert_proj",
        "ar_text_embedding",
        "ar_text_position",
        "ar_audio_embedding",
        "ar_audio_position",
        "h",
        "ar_predict_layer",
    ]
    torch_to_mlx(ckpt, tmp_path / "folder")
    (net,) = _inspected(tmp_path / "folder", "--against", ckpt)["nets"]
    assert net["kind"] == "GPT in a folder"
    assert all(module["moved"] == 0 for module in net["modules"])
    page = _run("inspect", ckpt).stdout
    assert "2 layers, 64 wide, 2 heads, 24 codes, 732 phonemes" in page
    assert "4 epochs" in page


def test_inspect_says_what_is_wrong_with_one(gpt: mlx_vits.GPT, tmp_path: Path) -> None:
    content = {"weight": {}, "config": gpt.config.to_dict(), "info": ""}
    table = {f"model.{key}": np.array(value) for key, value in state_of(gpt.model).items()}
    lacking = "model.h.layers.1.norm1.weight"
    table["model.ar_predict_layer.weight"][0, 0] = np.nan
    del table[lacking]
    write_torch_archive(tmp_path / "x.ckpt", content | {"weight": table})
    (net,) = _inspected(tmp_path / "x.ckpt")["nets"]
    assert net["missing"]["lacking"] == [lacking.removeprefix("model.")]
    assert net["missing"]["not_finite"] == ["ar_predict_layer.weight"]
    assert len(net["remarks"]) == 2


def test_inspect_names_the_gpt_of_a_base(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    add_gpt(tmp_path / "base")
    parts = _inspected(tmp_path / "base")["parts"]
    assert "mlx-vits inspect" in parts["gpt/weights.safetensors"]
