"""GPTs on disk: every form is read to the same net, and what is none is refused by what it is."""

from __future__ import annotations

import pathlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_vits
from mlx_vits.checkpoints.gpt_file import read_gpt, write_gpt
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.config import T2SConfig
from mlx_vits.errors import CheckpointError
from tests.support.goldens import golden
from tests.support.hostile_pickles import name, text
from tests.support.tiny import make_base
from tests.support.tiny_gpt import tiny_gpt
from tests.test_torch_archive_hostile import write_small

PHONES, CODES = np.arange(9)[None], np.arange(6)[None]


@pytest.fixture(scope="module")
def gpt() -> mlx_vits.GPT:
    return mlx_vits.GPT(tiny_gpt())


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("bases") / "v2"
    make_base(folder)
    return folder


def table(gpt: mlx_vits.GPT) -> dict[str, np.ndarray]:
    return {f"model.{key}": np.array(value) for key, value in state_of(gpt.model).items()}


def content(gpt: mlx_vits.GPT) -> dict[str, Any]:
    return {"weight": table(gpt), "config": gpt.config.to_dict(), "info": "GPT-e15"}


def refused(path: Path, *words: str, **options: Any) -> None:
    """One sentence that names the file."""
    with pytest.raises(CheckpointError) as caught:
        mlx_vits.load_gpt(path, **options)
    said = str(caught.value)
    assert str(path) in said
    for word in words:
        assert word in said, said


def test_every_form_gives_the_same_net(gpt: mlx_vits.GPT, tmp_path: Path) -> None:
    whole, half, folder = tmp_path / "whole.ckpt", tmp_path / "half.ckpt", tmp_path / "folder"
    state = tmp_path / "epoch=14-step=60.ckpt"
    write_torch_archive(whole, content(gpt))
    write_gpt(half, state_of(gpt.model), gpt.config, info="GPT-e15")
    write_gpt(folder, state_of(gpt.model), gpt.config, info="GPT-e15")
    training = {"config": gpt.config.to_dict(), "output_dir": "logs/s1"}
    write_torch_archive(state, {"state_dict": table(gpt), "hyper_parameters": training})
    expected = gpt.logits(PHONES, CODES)
    for path in (whole, folder, state):
        read = mlx_vits.load_gpt(path)
        assert read.config == gpt.config
        assert read.version == "v2"
        assert np.array_equal(read.logits(PHONES, CODES), expected)
    assert mlx_vits.load_gpt(half).info == mlx_vits.load_gpt(folder).info == "GPT-e15"
    close = mlx_vits.load_gpt(half).logits(PHONES, CODES)
    np.testing.assert_allclose(close, expected, atol=1e-2)  # fp16 has 11 bits
    weight = read_torch_archive(half)["weight"]
    assert {array.dtype for array in weight.values()} == {np.dtype(np.float16)}


def test_the_goldens_folder_loads() -> None:
    gpt = mlx_vits.load_gpt(golden("t2s", "config.json").parent)
    assert gpt.logits(PHONES, CODES).shape == (7, 65)


def test_keys_of_the_configuration_that_are_not_known_are_kept(tmp_path: Path) -> None:
    values = {
        "train": {"precision": "16-mixed", "save_every_n_epoch": 5},
        "data": {"max_sec": 40, "pad_val": 1024},
        "model": {"linear_units": 2048, "random_bert": 0, "phoneme_vocab_size": 512},
        "pretrained_s1": "s1.ckpt",
    }
    config = T2SConfig.from_dict(values)
    assert (config.version, config.max_sec) == ("v1", 40)
    again = config.to_dict()
    assert T2SConfig.from_dict(again) == config
    for section in ("train", "data", "model"):
        assert again[section] | values[section] == again[section]  # type: ignore[operator]
    assert again["pretrained_s1"] == "s1.ckpt"


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_a_path_in_a_training_state_becomes_text(module: str, tmp_path: Path) -> None:
    for kind, parts in (("PosixPath", "/ logs s1"), ("WindowsPath", "D:/ logs s1")):
        path = tmp_path / "x.ckpt"
        given = b"(" + b"".join(text(part) for part in parts.split()) + b"t"
        write_small(path, b"\x80\x02" + name(f"{module}.{kind}") + given + b"R.")
        assert read_torch_archive(path).endswith("/logs/s1")


def test_paths_of_paths_do_not_grow_without_end(tmp_path: Path) -> None:
    grow = b"q\x00" + name("pathlib.PosixPath") + b"h\x00h\x00\x86R"
    write_small(tmp_path / "x.ckpt", b"\x80\x02" + text("a" * 100) + grow * 40 + b".")
    with pytest.raises(CheckpointError, match="damaged"):
        read_torch_archive(tmp_path / "x.ckpt")


@pytest.mark.torch
def test_a_training_state_that_pytorch_wrote(gpt: mlx_vits.GPT, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from collections import OrderedDict

    state = OrderedDict((key, torch.from_numpy(value)) for key, value in table(gpt).items())
    content = {
        "epoch": 14,
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.002}]}],
        "hyper_parameters": {
            "config": gpt.config.to_dict(),
            "output_dir": pathlib.Path("logs/NAME/logs_s1"),
        },
    }
    torch.save(content, tmp_path / "last.ckpt")
    read = mlx_vits.load_gpt(tmp_path / "last.ckpt")
    assert np.array_equal(read.logits(PHONES, CODES), gpt.logits(PHONES, CODES))
    write_gpt(tmp_path / "e15.ckpt", state_of(gpt.model), gpt.config, info="GPT-e15")
    theirs = torch.load(tmp_path / "e15.ckpt", weights_only=True)
    assert sorted(theirs) == ["config", "info", "weight"]
    assert list(theirs["weight"]) == list(table(gpt))


def spoiled(gpt: mlx_vits.GPT, part: str, value: Any) -> dict[str, Any]:
    whole = content(gpt)
    if value is None:
        del whole["weight"][part]
    else:
        whole["weight"][part] = value
    return whole


def test_damaged_files_are_refused(gpt: mlx_vits.GPT, tmp_path: Path) -> None:
    path, norm = tmp_path / "x.ckpt", "model.h.layers.0.norm1.weight"
    for words, value in (
        ("NaN or infinity", np.full(64, np.nan, np.float32)),
        ("norm1.weight has shape [63]", np.ones(63, np.float32)),
        ("lacks h.layers.0.norm1.weight", None),
    ):
        write_torch_archive(path, spoiled(gpt, norm, value))
        refused(path, words)
    write_torch_archive(path, spoiled(gpt, "model.more", np.ones(1, np.float32)))
    refused(path, "holds tensors this model has not: more")
    write_torch_archive(path, content(gpt))
    path.write_bytes(path.read_bytes()[:-3000])
    refused(path, "damaged")
    write_torch_archive(path, content(gpt) | {"config": None})
    refused(path, "lacks the configuration")
    write_torch_archive(path, table(gpt))
    refused(path, "no configuration")
    refused(tmp_path / "none.ckpt", "no such GPT")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("head", 3), ("hidden_dim", 0), ("n_layer", 1000), ("EOS", 3), ("vocab_size", "many")],
)
def test_a_configuration_of_no_gpt_is_refused(
    key: str, value: Any, gpt: mlx_vits.GPT, tmp_path: Path
) -> None:
    whole = content(gpt)
    whole["config"]["model"][key] = value
    write_torch_archive(tmp_path / "x.ckpt", whole)
    refused(tmp_path / "x.ckpt", key)


def test_a_gpt_and_a_voice_are_not_taken_for_each_other(
    gpt: mlx_vits.GPT, base: Path, tmp_path: Path
) -> None:
    voice = tmp_path / "voice.pth"
    mlx_vits.load(base).save(voice)
    refused(voice, "SoVITS stage", "not a GPT")
    mlx_vits.load(base).save(tmp_path / "voice")
    refused(tmp_path / "voice", "SoVITS stage", "not a GPT")
    for path in (tmp_path / "gpt.ckpt", tmp_path / "gpt"):
        write_gpt(path, state_of(gpt.model), gpt.config, info="")
        with pytest.raises(CheckpointError, match="GPT stage, which chooses what is said"):
            mlx_vits.load(path)
    write_torch_archive(tmp_path / "x.ckpt", {"weight": {"a": np.ones(1, np.float32)}})
    refused(tmp_path / "x.ckpt", "not a GPT of GPT-SoVITS")


def test_a_gpt_of_another_version_is_refused(gpt: mlx_vits.GPT, tmp_path: Path) -> None:
    for phonemes, own, other in ((732, "v2ProPlus", "v1"), (512, "v1", "v2Pro")):
        model = tiny_gpt(phonemes=phonemes)
        path = tmp_path / f"{phonemes}.ckpt"
        write_gpt(path, state_of(model), model.config, info="")
        assert read_gpt(path, version=own).config.phoneme_vocab_size == phonemes
        refused(path, f"{phonemes} phonemes", f"the voice is {other}", version=other)


def test_numbers_too_large_for_fp16_are_not_exported(gpt: mlx_vits.GPT, tmp_path: Path) -> None:
    state = state_of(gpt.model) | {"bert_proj.bias": mx.full((64,), 1e6)}
    with pytest.raises(CheckpointError, match="bert_proj"):
        write_gpt(tmp_path / "x.ckpt", state, gpt.config, info="")
    assert not list(tmp_path.iterdir())


def test_the_gpt_of_a_base_and_of_a_run(
    gpt: mlx_vits.GPT, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base has it in `gpt/` or as `gpt.ckpt`; a run its own, else that of its base."""
    own, run = tmp_path / "v2", tmp_path / "run"
    make_base(own)
    refused(own, "this base has no GPT")
    run.mkdir()
    RunInfo("alice", "", "", "", "v2", str(own), "", "", "", "en").write(run)
    refused(run, "neither the run nor its base v2 has a GPT")
    write_gpt(own / "gpt.ckpt", state_of(gpt.model), gpt.config, info="of the file")
    assert mlx_vits.load_gpt(own).info == "of the file"
    write_gpt(own / "gpt", state_of(gpt.model), gpt.config, info="of the base")
    assert mlx_vits.load_gpt(own).info == mlx_vits.load_gpt(run).info == "of the base"
    moved = tmp_path / "bases" / "v2"
    moved.parent.mkdir()
    own.rename(moved)
    monkeypatch.setenv("MLX_VITS_HOME", str(moved.parent))
    assert mlx_vits.load_gpt(run).info == "of the base"
    write_gpt(run / "gpt", state_of(gpt.model), gpt.config, info="of the run")
    assert mlx_vits.load_gpt(run).info == "of the run"
