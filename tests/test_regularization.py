"""The pull toward the pretrained weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn.layers import Convolution
from mlx_vits.training.optimizers import global_norm
from mlx_vits.training.regularization import (
    PretrainedRegularization,
    StackedPull,
    effective_weights,
    penalized,
    relative_drift,
    take_anchor,
)
from mlx_vits.training.stacks import stacked_norm
from mlx_vits.training.vits_trainer import freeze_for
from tests.support.tiny import tiny_config
from tests.support.tiny_gpt import tiny_gpt


def _generator(train: Any = "all") -> SynthesizerTrn:
    mx.random.seed(0)
    model = SynthesizerTrn(tiny_config())
    freeze_for(model, train)
    return model


def _moved(model: SynthesizerTrn, share: float) -> SynthesizerTrn:
    mx.random.seed(1)
    for path, module in model.named_modules():
        if isinstance(module, Convolution) and path.startswith("dec."):
            name = "weight_v" if "weight_v" in module else "weight"
            module[name] = module[name] + share * mx.random.normal(module[name].shape)
    return model


def test_value_is_the_mean_squared_relative_distance() -> None:
    model = _generator()
    anchor = take_anchor(model)
    assert PretrainedRegularization(anchor, 1.0)(model).item() == 0.0
    weights = {k: np.array(v, np.float64) for k, v in effective_weights(_moved(model, 0.1)).items()}
    expected = np.mean(
        [
            np.sum((weights[k] - np.array(w0)) ** 2) / np.sum(np.array(w0, np.float64) ** 2)
            for k, w0 in anchor.items()
        ]
    )
    ours = PretrainedRegularization(anchor, 0.001)(model).item()
    assert ours == pytest.approx(0.001 * expected, rel=1e-5)


def test_what_is_anchored() -> None:
    model = _generator()
    anchored = set(take_anchor(model))
    assert {"dec.ups.0", "dec.conv_pre", "enc_q.enc.cond_layer", "ref_enc.fc.fc"} <= anchored
    # Frozen layers, embeddings, norms, and the coupling layers' zero-initialised output.
    assert not anchored & {"ssl_proj", "enc_p.text_embedding", "flow.flows.0.post"}
    assert not any("norm_layers" in path or "codebook" in path for path in anchored)
    assert {path.split(".")[0] for path in take_anchor(_generator("decoder"))} == {"dec", "ref_enc"}


def test_gradient_by_finite_differences() -> None:
    model = _generator()
    anchor = take_anchor(model)
    _moved(model, 0.3)
    loss, grads = nn.value_and_grad(model, lambda: PretrainedRegularization(anchor, 1e3)(model))()
    direction = {}
    mx.random.seed(2)
    flat: Any = dict(tree_flatten(model.trainable_parameters()))
    gradient: Any = dict(tree_flatten(grads))
    for path, array in flat.items():
        if path.startswith("dec.") and "bias" not in path:
            direction[path] = mx.random.normal(array.shape) * 0.01
    slope = sum(mx.sum(gradient[path] * d).item() for path, d in direction.items())

    def at(scale: float) -> float:
        moved = [(path, flat[path] + scale * d) for path, d in direction.items()]
        model.update(tree_unflatten(moved))
        return float(PretrainedRegularization(anchor, 1e3)(model).item())

    measured = (at(1.0) - at(-1.0)) / 2
    assert loss.item() > 0
    assert measured == pytest.approx(slope, rel=2e-3)


def test_in_stacks_it_is_its_own_derivative() -> None:
    model = tiny_gpt()
    anchor = take_anchor(model)
    pull, in_stacks = PretrainedRegularization(anchor, 1.0), StackedPull(model, anchor, 1.0)
    model.update(tree_map(lambda weight: 1.1 * weight + 0.01, model.parameters()))
    gradients = tree_map(lambda weight: 0.01 * mx.ones_like(weight), model.trainable_parameters())
    found, expected = in_stacks(model, gradients), penalized(model, pull, gradients)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert found.norm.item() == pytest.approx(expected.norm.item(), rel=1e-5)
    for (path, ours), (_, theirs) in zip(
        tree_flatten(found.grads), tree_flatten(expected.grads), strict=True
    ):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-6, err_msg=path)
    assert stacked_norm(found.grads).item() == pytest.approx(global_norm(found.grads).item())


def test_drift_is_relative_and_by_layer() -> None:
    model = _generator()
    anchor = take_anchor(model)
    model.dec.conv_pre["weight"] = model.dec.conv_pre["weight"] * 1.1
    drift = relative_drift(model, anchor)
    assert drift["dec.conv_pre"] == pytest.approx(0.1, rel=1e-4)
    assert drift["dec.ups.0"] == 0.0


def test_the_anchor_does_not_follow_the_weights() -> None:
    model = _generator()
    anchor = take_anchor(model)
    before = np.array(anchor["dec.conv_pre"])
    model.dec.conv_pre["weight"] = model.dec.conv_pre["weight"] + 1
    assert np.array_equal(np.array(anchor["dec.conv_pre"]), before)
