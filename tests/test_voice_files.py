"""Voices on disk: upstream's `.pth`, safetensors with metadata, folders."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_vits
from mlx_vits.checkpoints.contents import detect_version
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.checkpoints.voice_file import read_voice, write_voice
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.system.files import replace_folder
from tests.support.goldens import SHARED, assert_close, generator, golden, tensors
from tests.support.tiny import make_base, tiny_config

VERSIONS = ["v2", "v1", "v2Pro", "v2ProPlus"]
WAVE_ATOL = 1e-4
TABLE = "enc_p.text_embedding.weight"


def _golden_pth(version: str) -> Path:
    return golden(f"sovits_{version}", f"golden_{version}_e8_s64.pth")


def _decode(voice: mlx_vits.Voice, data: dict[str, mx.array], case: str) -> np.ndarray:
    several = case == "multi"
    refer = [data["in/refer0"], data["in/refer1"]]
    vectors = [data["in/sv_emb0"], data["in/sv_emb1"]] if "in/sv_emb0" in data else None
    return voice.decode(
        data["in/codes"],
        data["in/text"],
        refer if several else refer[0],
        sv_emb=vectors if several or vectors is None else vectors[0],
        noise=data[f"in/noise_{case}"],
        noise_scale=0.35 if several else 0.5,
        speed=1.0 if several else float(case[1:]),
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_pth_decodes_as_in_the_original(version: str) -> None:
    voice = mlx_vits.load(_golden_pth(version))
    data = tensors(f"sovits_{version}", "decode.safetensors")
    assert voice.version == version
    assert voice.info == "8epoch_64iteration"
    for name in [name for name in data if name.startswith("from_pth/")]:
        wav = _decode(voice, data, name.split("/")[1])
        assert_close(wav, data[name][0, 0], atol=WAVE_ATOL)


@pytest.mark.parametrize(
    ("version", "form"),
    [(v, "voice.pth") for v in VERSIONS] + [("v2", "voice.safetensors"), ("v2", "voice")],
)
def test_every_form_comes_back_with_the_same_samples(
    version: str, form: str, tmp_path: Path
) -> None:
    voice = mlx_vits.load(_golden_pth(version))
    data = tensors(f"sovits_{version}", "decode.safetensors")
    again = mlx_vits.load(voice.save(tmp_path / form))
    assert (again.version, again.info) == (voice.version, voice.info)
    assert again.config.reduced_dims == voice.config.reduced_dims
    assert np.array_equal(_decode(again, data, "s1.0"), _decode(voice, data, "s1.0"))


def _whole_voice() -> mlx_vits.Voice:
    """With the posterior encoder, as after training."""
    return mlx_vits.Voice(generator("sovits_v2"), info="8epoch_64iteration", name="golden")


def test_the_export_is_upstreams_form(tmp_path: Path) -> None:
    path = _whole_voice().save(tmp_path / "v.pth")
    content, theirs = read_torch_archive(path), read_torch_archive(_golden_pth("v2"))
    assert list(content) == ["weight", "config", "info"]
    assert list(content["weight"]) == list(theirs["weight"])  # the order, and no enc_q
    for name, array in theirs["weight"].items():
        assert content["weight"][name].dtype == np.float16
        assert np.array_equal(content["weight"][name], array), name
    # All that inference reads; the rest of `train` is what upstream's own trainer was told.
    read = ("filter_length", "hop_length", "win_length", "sampling_rate", "n_speakers")
    assert all(content["config"]["data"][k] == theirs["config"]["data"][k] for k in read)
    assert content["config"]["train"]["segment_size"] == theirs["config"]["train"]["segment_size"]
    assert content["config"]["model"] == theirs["config"]["model"]
    assert content["config"]["model"]["version"] == "v2"
    for key in ("s2_ckpt_dir", "content_module", "save_weight_dir", "name", "version"):
        assert key in content["config"]
    assert path.read_bytes()[:2] == b"PK"


def test_only_reduced_models_state_their_sizes_in_the_export(tmp_path: Path) -> None:
    exported = read_torch_archive(_whole_voice().save(tmp_path / "v.pth"))
    assert exported["config"]["reduced_dims"]["ssl_dim"] == 40
    metadata = read_tensors(
        mlx_vits.load(_golden_pth("v2")).save(tmp_path / "v.safetensors")
    ).metadata
    assert metadata["version"] == "v2"
    assert metadata["info"] == "8epoch_64iteration"
    assert json.loads(metadata["config"])["reduced_dims"]["mrte_hidden"] == 28


def test_versions_are_told_by_content() -> None:
    assert detect_version({TABLE: np.zeros((322, 2))}) == "v1"
    assert detect_version({TABLE: np.zeros((732, 2))}) == "v2"
    pro = {"sv_emb.weight": np.zeros(1), "dec.ups.0.weight_v": np.zeros((4, 2, 16))}
    pro[TABLE] = np.zeros((732, 2))
    assert detect_version(pro) == "v2Pro"
    pro["dec.ups.0.weight_v"] = np.zeros((4, 2, 20))
    assert detect_version(pro) == "v2ProPlus"


def test_a_pth_without_sizes_gets_them_from_its_tensors() -> None:
    stated = generator("sovits_v2").config.reduced_dims
    inferred = read_voice(_golden_pth("v2")).config.reduced_dims
    # The posterior encoder is not in the file, and dropout is not in any tensor.
    assert inferred == dataclasses.replace(stated, dropout_everywhere=None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weight": {"a": np.zeros(1)}, "config": {}}, "not a SoVITS generator"),
        ({"weight": {"a": 3}, "config": {}}, "hold 'a', which is no tensor"),
        ({"weight": {"cfm.x": np.zeros(1), TABLE: np.zeros((732, 2))}}, "is a v3 or v4 model"),
        ({"weight": {"x.attn.to_q.lora_A.default.weight": np.zeros(1)}}, "is a LoRA of v3 or v4"),
        ({"weight": {"model.h.layers.0.x": np.zeros(1)}}, "GPT stage.*give the .pth from SoVITS_w"),
        ({"model": {"enc_p.emb_phone.weight": np.zeros(1)}, "optimizer": None}, "a voice of RVC"),
        ({"model": {"f0_decoder.proj.weight": np.zeros(1)}, "iteration": 8}, "of so-vits-svc"),
        ({"state_dict": {"model_g.enc_p.x": np.zeros(1)}, "epoch": 3}, "is a model of Piper"),
        ({"feature_extractor.x": np.zeros(1)}, "content encoder, not a voice; give its folder as"),
        ({"weight": {"x" * 600: np.zeros(1)}}, "the name of a tensor has 600 characters"),
        ({"weight": {TABLE: np.zeros(732)}}, "not a SoVITS generator"),
        ({"weight": {TABLE: np.zeros((732, 2))}, "config": {"model": 3}}, "not a table"),
        ({"weight": {TABLE: np.zeros((732, 2))}, "config": 3}, "configuration is damaged"),
        ({"weight": {TABLE: np.zeros((732, 2))}}, "lacks 'enc_p.encoder_text"),
        ({"weight": {"discriminators.0.x": np.zeros(1)}}, "is a discriminator, not a voice"),
        ({"model": {TABLE: np.zeros((732, 2))}, "optimizer": {}}, "lacks iteration"),
        ({"model": {}, "iteration": 3}, "holds model, iteration"),
        ({TABLE: np.zeros((732, 2))}, "it states no configuration: save it in PyTorch as"),
        ([1, 2], "holds something else"),
    ],
)
def test_other_files_are_refused_by_name(content: Any, words: str, tmp_path: Path) -> None:
    from mlx_vits.checkpoints.torch_archive import write_torch_archive

    write_torch_archive(tmp_path / "other.pth", content)
    with pytest.raises(CheckpointError, match=words) as caught:
        mlx_vits.load(tmp_path / "other.pth")
    assert "other.pth" in str(caught.value)


def test_a_hostile_pickle_inside_a_real_voice_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    path = tmp_path / "voice.pth"
    with zipfile.ZipFile(_golden_pth("v2")) as theirs, zipfile.ZipFile(path, "w") as ours:
        for info in theirs.infolist():
            is_pickle = info.filename.endswith("data.pkl")
            ours.writestr(info.filename, hostile if is_pickle else theirs.read(info))
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        mlx_vits.load(path)
    assert not canary.exists()


def test_damaged_safetensors_are_named(tmp_path: Path) -> None:
    good = mlx_vits.load(_golden_pth("v2")).save(tmp_path / "good.safetensors")
    data = good.read_bytes()
    for name, content in (
        ("short.safetensors", data[: len(data) // 2]),
        ("header.safetensors", data[:8] + b"{" * 50 + data[58:]),
        ("empty.safetensors", b""),
        ("text.safetensors", b"hello, this is not a model at all"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            mlx_vits.load(tmp_path / name)
    write_tensors(tmp_path / "bare.safetensors", {"a": mx.zeros(1)})
    with pytest.raises(CheckpointError, match="no configuration"):
        mlx_vits.load(tmp_path / "bare.safetensors")


def test_names_and_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLX_VITS_HOME", str(tmp_path))
    for name in ("nobody", tmp_path / "nowhere.pth"):
        with pytest.raises(CheckpointError, match="there is no such voice"):
            mlx_vits.load(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is not a base"):
        mlx_vits.load("empty")


def test_a_base_loads_by_name_and_by_path(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLX_VITS_HOME", str(tmp_path))
    make_base(tmp_path / "mine")
    make_base(tmp_path / "other" / "base")
    for name in ("mine", tmp_path / "mine", "other"):
        voice = mlx_vits.load(name)
        assert voice.config.model == tiny_config().model
        assert voice.content_encoder is not None


@pytest.mark.torch
def test_pytorch_opens_our_export(tmp_path: Path) -> None:
    """In a process of its own: PyTorch and MLX bring a BLAS each."""
    pytest.importorskip("torch")
    versions = [v for v in VERSIONS if v == "v2" or (SHARED / "goldens").exists()]
    for version in versions:
        path = mlx_vits.load(_golden_pth(version)).save(tmp_path / f"{version}.pth")
        if "Pro" in version:
            data = path.read_bytes()
            assert data[:2] == {"v2Pro": b"05", "v2ProPlus": b"06"}[version]
            path.write_bytes(b"PK" + data[2:])
        expected = read_torch_archive(_golden_pth(version))["weight"]
        np.savez(tmp_path / f"{version}.npz", **expected)
    script = (
        "import sys, numpy, torch\n"
        "for version in sys.argv[2:]:\n"
        "    ours = torch.load(f'{sys.argv[1]}/{version}.pth', weights_only=True)\n"
        "    theirs = numpy.load(f'{sys.argv[1]}/{version}.npz')\n"
        "    assert set(ours['weight']) == set(theirs.files)\n"
        "    for name in theirs.files:\n"
        "        tensor = ours['weight'][name]\n"
        "        assert tensor.dtype == torch.float16 and tensor.is_contiguous(), name\n"
        "        assert numpy.array_equal(tensor.numpy(), theirs[name]), name\n"
        "    assert ours['config']['model']['version'] == version\n"
        "    assert ours['info'] == '8epoch_64iteration'\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), *versions]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_export_of_the_full_size_is_taken_for_v2_by_its_length(tmp_path: Path) -> None:
    """Upstream takes a file below 82,978 KiB for v1. Zeros of the true shapes weigh the same."""
    from mlx_vits.checkpoints.state_dict import expected_shapes
    from mlx_vits.config import Config
    from mlx_vits.models.vits import SynthesizerTrn

    for version, is_v2 in (("v2", True), ("v1", False)):
        config = Config.from_dict({"version": version})
        shapes = expected_shapes(SynthesizerTrn(config))
        state = {
            name: mx.zeros(shape, mx.float16)
            for name, shape in shapes.items()
            if not name.startswith("enc_q")
        }
        path = tmp_path / f"{version}.pth"
        write_voice(path, state, config, info="1epoch_1iteration", name="zero")
        assert (path.stat().st_size >= 82978 * 1024) == is_v2
        path.unlink()


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    voice = mlx_vits.load(_golden_pth("v2"))
    with pytest.raises(mlx_vits.UserError, match="cannot be written"):
        voice.save(tmp_path / "no" / "folder" / "voice.pth")
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)


def test_an_exported_voice_is_saved_without_what_it_never_had(tmp_path: Path) -> None:
    """Not with a random posterior encoder, which would look fit for training."""
    voice = mlx_vits.load(_golden_pth("v2"))
    for form in ("voice.safetensors", "voice"):
        path = voice.save(tmp_path / form)
        names = read_voice(path).tensors
        assert not any(name.startswith("enc_q") for name in names)
        assert len(names) == 601
    with pytest.raises(mlx_vits.UserError, match="holds something else"):
        voice.save(tmp_path)


def test_state_of_a_loaded_voice_is_whole() -> None:
    """Every tensor is saved, not only the trained ones."""
    names = set(state_of(mlx_vits.load(_golden_pth("v2")).model))
    assert "quantizer.vq.layers.0._codebook.cluster_size" in names
    assert "ssl_proj.bias" in names


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    kept = tmp_path / "voice"
    kept.mkdir()
    (kept / "weights").write_text("old")
    with pytest.raises(UserError, match="voice: cannot be written"):
        replace_folder(tmp_path / "never made", kept)
    assert [path.name for path in tmp_path.iterdir()] == ["voice"]
    assert (kept / "weights").read_text() == "old"


def test_a_bare_state_dict_is_a_voice(tmp_path: Path) -> None:
    """As scripts that merge voices write it; upstream's rates are what its sizes do not tell."""
    from mlx_vits.checkpoints.torch_archive import write_torch_archive

    config = Config.from_dict({"model": {"upsample_initial_channel": 64, "filter_channels": 96}})
    weight = {name: np.array(a) for name, a in state_of(SynthesizerTrn(config)).items()}
    write_torch_archive(tmp_path / "merged.pth", weight)
    assert mlx_vits.load(tmp_path / "merged.pth").version == "v2"


def test_a_voice_in_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "voice.zip", "w") as archive:
        archive.write(_golden_pth("v2"), "me/voice.pth")
    with pytest.raises(CheckpointError, match=r"is a zip that holds me/voice\.pth; unpack it"):
        read_voice(tmp_path / "voice.zip")
