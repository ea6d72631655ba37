"""The content encoder against Hugging Face's `HubertModel`."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_vits.checkpoints.base import load_content_encoder
from mlx_vits.checkpoints.state_dict import load_state, state_of
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.errors import CheckpointError
from mlx_vits.models.hubert import HubertConfig, HubertModel
from tests.support.goldens import assert_close, golden, last, tensors, values

ATOL = 1e-4


@pytest.fixture(scope="module")
def model() -> HubertModel:
    hubert = HubertModel(HubertConfig.from_dict(values("hubert", "config.json")))
    load_state(hubert, tensors("hubert", "weights.safetensors"), source="hubert")
    return hubert


def test_every_layer(model: HubertModel) -> None:
    data = tensors("hubert", "io.safetensors")
    x = data["in/wav16k"][None, :, None]
    for index, layer in enumerate(model.feature_extractor.conv_layers):
        x = layer(x)
        theirs = data["out/conv0_first256"] if index == 0 else data[f"out/conv{index}"]
        assert_close(last(x)[..., : theirs.shape[-1]], theirs, atol=ATOL)
    x = model.feature_projection(x)
    assert_close(x, data["out/feature_projection"], atol=ATOL)
    assert_close(model.encoder.pos_conv_embed(x), data["out/pos_conv_embed"], atol=ATOL)
    x = model.encoder.layer_norm(x + model.encoder.pos_conv_embed(x))
    assert_close(x, data["out/hidden0"], atol=ATOL)
    for index, layer in enumerate(model.encoder.layers):
        x = layer(x)
        assert_close(x, data[f"out/hidden{index + 1}"], atol=ATOL)
    features = model(data["in/wav16k"][None])
    assert_close(features, data["out/last_hidden_state"], atol=ATOL)


def test_names_of_other_transformers_versions(model: HubertModel, tmp_path) -> None:
    """A `pytorch_model.bin` with the prefix and parametrised names loads the same weights."""
    config = golden("hubert", "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    renamed = {
        "hubert."
        + name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): np.array(array)
        for name, array in state_of(model).items()
        if name != "masked_spec_embed"
    }
    write_torch_archive(tmp_path / "pytorch_model.bin", renamed)
    other = load_content_encoder(tmp_path)
    wav = tensors("hubert", "io.safetensors")["in/wav16k"][None]
    assert mx.array_equal(other(wav), model(wav))


def test_another_topology_is_refused(tmp_path) -> None:
    for content, words in (
        ('{"feat_extract_norm": "layer"}', "feat_extract_norm is 'layer'"),
        ('{"hidden_size": "wide"}', "hidden_size is 'wide'"),
        ("[]", r"is damaged \(it is \[\], not a table\)"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=words):
            load_content_encoder(tmp_path)


def test_a_missing_tensor_is_named(model: HubertModel, tmp_path) -> None:
    (tmp_path / "config.json").write_text(golden("hubert", "config.json").read_text())
    state = state_of(model)
    del state["encoder.layers.1.layer_norm.bias"]
    write_tensors(tmp_path / "weights.safetensors", state)
    with pytest.raises(CheckpointError, match=r"lacks encoder\.layers\.1\.layer_norm\.bias"):
        load_content_encoder(tmp_path)


def test_the_published_size() -> None:
    """Geometry of chinese-hubert-base: 94.4 M parameters with its published names."""
    count = sum(array.size for _, array in nn.utils.tree_flatten(HubertModel().parameters()))
    assert count == 94_371_712
