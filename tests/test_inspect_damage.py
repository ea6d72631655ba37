"""`mlx-vits inspect`: files with something wrong in them, and where loudness was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.base import load_generator
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.checkpoints.voice_file import read_voice, write_voice
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn.layers import Conv1d, ConvTranspose1d
from mlx_vits.nn.layout import to_torch
from mlx_vits.tools.inspect.layers import decoder_rows, effective_weight, forms
from tests.support.looking import golden_voice, levels_of, look_at, said_of, write_pth
from tests.support.tiny import make_base


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> SynthesizerTrn:
    base = make_base(tmp_path_factory.mktemp("bases") / "v2")
    return load_generator(base.read_generator())


@pytest.fixture
def weight(model: SynthesizerTrn) -> dict[str, np.ndarray]:
    """A tiny v2 generator's tensors, for a test to damage."""
    return {name: np.array(array) for name, array in state_of(model).items()}


def test_what_is_missing_is_named(
    weight: dict[str, Any], model: SynthesizerTrn, tmp_path: Path
) -> None:
    for name in ("dec.conv_pre.weight", "flow.flows.0.post.bias", "enc_q.pre.weight"):
        weight.pop(name)
    weight["dec.extra"] = np.zeros(1, np.float32)
    weight["enc_p.proj.bias"] = np.zeros(3, np.float32)
    config = model.config.to_dict()
    del config["data"]["n_speakers"], config["model"]["gin_channels"]
    _, net, text = look_at(write_pth(tmp_path / "s2G.pth", weight, model, config=config))
    missing = net["missing"]
    assert missing["lacking"] == [
        "dec.conv_pre.weight",
        "enc_q.pre.weight",
        "flow.flows.0.post.bias",
    ]
    assert missing["unknown"] == ["dec.extra"]
    assert missing["misshapen"] == {"enc_p.proj.bias": [[3], [16]]}
    assert missing["config_fields"] == ["data.n_speakers", "model.gin_channels"]
    assert "lacks 3 of the" in said_of(net)
    assert "lacks 'dec.conv_pre.weight'" in net["config_fault"]
    assert levels_of(net, "ups.0")["norm"] > 0  # the rest is shown
    assert "no s2D.pth beside it" in text


def test_a_file_whose_sizes_nothing_tells(
    weight: dict[str, Any], model: SynthesizerTrn, tmp_path: Path
) -> None:
    weight.pop("ssl_proj.weight")
    write_torch_archive(tmp_path / "voice.pth", {"weight": weight})
    net = look_at(tmp_path / "voice.pth").net
    assert net["missing"]["compared"] is False
    assert net["reduced"] is None
    assert "cannot be determined" in said_of(net)
    assert levels_of(net, "conv_post")["norm"] > 0


def test_what_is_not_a_number_is_named(
    weight: dict[str, Any], model: SynthesizerTrn, tmp_path: Path
) -> None:
    weight["dec.conv_post.weight"][0, 0, 0] = np.nan
    weight["dec.ups.1.weight_v"][2] = 0
    weight["quantizer.vq.layers.0._codebook.inited"][:] = 0
    _, net, text = look_at(write_pth(tmp_path / "s2G.pth", weight, model))
    assert net["missing"]["not_finite"] == ["dec.conv_post.weight"]
    assert net["missing"]["zero_channels"] == ["dec.ups.1.weight_v"]
    assert net["missing"]["quantizer_fitted"] is False
    assert levels_of(net, "conv_post")["norm"] is None  # NaN is not JSON
    assert levels_of(net, "ups.1")["norm"] is None
    assert "NaN or infinity: dec.conv_post.weight" in said_of(net)
    assert "inited is 0" in " ".join(text.split())


def test_live_folded_and_mixed(
    weight: dict[str, Any], model: SynthesizerTrn, tmp_path: Path
) -> None:
    live = look_at(write_pth(tmp_path / "live.pth", dict(weight), model)).net
    for layer in ("dec.ups.0", "dec.resblocks.1.convs1.0"):
        g, v = weight.pop(f"{layer}.weight_g"), weight.pop(f"{layer}.weight_v")
        weight[f"{layer}.weight"] = g * v / np.sqrt((v * v).sum((1, 2), keepdims=True))
    weight["dec.ups.1.weight"] = weight["dec.ups.1.weight_v"]
    weight.pop("dec.ups.2.weight_g")
    _, net, text = look_at(write_pth(tmp_path / "s2G.pth", weight, model))
    forms = net["weight_norm"]
    assert forms["folded"] == ["dec.resblocks.1.convs1.0", "dec.ups.0"]
    assert (forms["mixed"], forms["broken"]) == (["dec.ups.1"], ["dec.ups.2"])
    assert forms["live"] == live["weight_norm"]["live"] - 4
    # A layer in another form is not missing.
    assert net["missing"]["lacking"] == ["dec.ups.2.weight_g"]
    assert net["missing"]["unknown"] == []
    assert "drops them without a word" in said_of(net)
    assert levels_of(net, "ups.0")["norm"] == pytest.approx(
        levels_of(live, "ups.0")["norm"], rel=1e-6
    )
    assert "folded" in text


def test_ratios_show_where_the_loudness_went(
    weight: dict[str, Any], model: SynthesizerTrn, tmp_path: Path
) -> None:
    base = write_pth(tmp_path / "base.pth", dict(weight), model)
    for name in (
        "dec.ups.1.weight_g",
        "dec.conv_post.weight",
        "dec.resblocks.2.convs1.1.weight_g",
    ):
        weight[name] = weight[name] * np.float32(0.5)
    weight["dec.ups.2.weight_v"] *= np.float32(4)  # the length of v is of no account
    tuned = write_pth(tmp_path / "tuned.pth", weight, model)
    _, net, text = look_at(tuned, base)
    halved = levels_of(net, "ups.1")
    assert halved["norm_ratio"] == pytest.approx(0.5)
    assert halved["g_ratio"] == pytest.approx(0.5)
    assert halved["moved"] == pytest.approx(0.5)
    assert levels_of(net, "conv_post")["norm_ratio"] == pytest.approx(0.5)
    assert levels_of(net, "ups.0")["norm_ratio"] == 1
    assert levels_of(net, "ups.2")["norm_ratio"] == pytest.approx(1)
    assert levels_of(net, "ups.2")["moved"] < 1e-6
    assert 0.5 < levels_of(net, "resblocks.2-3")["norm_ratio"] < 1
    assert sorted(net["stand_out"]) == sorted(
        ["dec.ups.1", "dec.conv_post", "dec.resblocks.2.convs1.1"]
    )
    assert "0.500" in text
    assert "Changed most: dec." in text


def test_norm_and_gain_are_what_they_say(weight: dict[str, Any], model: SynthesizerTrn) -> None:
    """Noise of RMS 1 goes through real layers; the norms are those of the model's own weights."""
    weights = {
        "dec.conv_pre": model.dec.conv_pre.effective_weight(),
        "dec.ups.0": model.dec.ups[0].effective_weight(),
    }
    for name, theirs in weights.items():
        ours = effective_weight(weight, name)
        assert ours is not None
        assert mx.array_equal(ours, theirs)
    mx.random.seed(0)
    layers: dict[str, Any] = {
        "dec.conv_pre": Conv1d(8, 6, 7),
        "dec.ups.0": ConvTranspose1d(8, 6, 16, stride=10, padding=3),
    }
    tensors = {f"{n}.weight": to_torch(layer.weight, layer.kind) for n, layer in layers.items()}
    rows = decoder_rows(tensors, forms(tensors, set()), rates=[10])
    for row, layer in zip(rows, layers.values(), strict=True):
        layer.bias = mx.zeros_like(layer.bias)
        out = layer(mx.random.normal((1, 20000, 8)))
        rms = float(mx.sqrt(mx.mean(mx.square(out))))
        assert row.levels.gain == pytest.approx(rms, rel=0.02)
        assert row.layers[0].channels == [8, 6]


@pytest.mark.parametrize(
    ("version", "code", "words"),
    [("v2", "05", "random layers"), ("v2Pro", None, "fails when it is to speak")],
)
def test_a_wrong_header(version: str, code: str | None, words: str, tmp_path: Path) -> None:
    content = read_torch_archive(golden_voice(version))
    write_torch_archive(tmp_path / "x.pth", content, version_code=code)
    _, net, text = look_at(tmp_path / "x.pth")
    assert net["version"]["version"] == version
    assert words in said_of(net)
    text = " ".join(text.split())
    assert words in text
    if code:
        assert "version code says v2Pro, but its tensors are v2" in text


def test_a_configuration_that_claims_another_version(
    weight: dict[str, Any], model: SynthesizerTrn, tmp_path: Path
) -> None:
    config = model.config.to_dict()
    config["model"]["version"] = "v1"
    config |= {"version": "v2Pro"}
    config["train"]["pretrained_s2G"] = "/models/s2G.pth\x1b[31m"
    path = write_pth(tmp_path / "s2G.pth", weight, model, config=config)
    _, net, text = look_at(path)
    notes = said_of(net, "note")
    assert "config.version says v2Pro, but its tensors are v2" in notes
    assert "config.model.version says v1" in notes
    assert "pretrained_s2G /models/s2G.pth?[31m" in text  # a terminal obeys nothing in a file
    assert "\x1b" not in text


def test_damaged_text_beside_a_voice_is_told_and_the_rest_is_shown(
    model: SynthesizerTrn, tmp_path: Path
) -> None:
    folder = tmp_path / "voice"
    write_voice(folder, state_of(model), model.config, info="", name="me")
    (folder / "config.json").write_text("{")
    facts, net, _ = look_at(folder)
    assert "is not valid JSON" in facts["faults"][0]
    assert net["version"]["version"] == "v2"
    tensors = read_voice(golden_voice("v2")).tensors
    arrays = {name: mx.array(array) for name, array in tensors.items()}
    write_tensors(tmp_path / "x.safetensors", arrays, {"config": "{"})
    facts, net, _ = look_at(tmp_path / "x.safetensors")
    assert "metadata is damaged" in facts["faults"][0]
    assert net["missing"]["lacking"] == []
