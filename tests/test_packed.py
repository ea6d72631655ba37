"""Blocks of parameters: what goes in comes out, and a net computes the same with them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.models.discriminator import MultiPeriodDiscriminator
from mlx_vits.models.vits import TEXT_SIDE, SynthesizerTrn
from mlx_vits.nn.weight_norm import fold_weight
from mlx_vits.training import packed as packed_module
from mlx_vits.training.packed import Packed
from mlx_vits.training.regularization import PackedPull, pretrained_regularization, take_anchor
from mlx_vits.training.step import GANStep, build_optimizers, set_learning_rates
from mlx_vits.training.vits_trainer import freeze_for
from tests.support.tiny import tiny_config


def _generator(scheme: Any = "upstream", train: Any = "all") -> SynthesizerTrn:
    mx.random.seed(0)
    model = SynthesizerTrn(tiny_config(), scheme)
    freeze_for(model, train)
    return model


def _trained(model: nn.Module) -> dict[str, mx.array]:
    leaves: Any = tree_flatten(model.trainable_parameters())
    return dict(leaves)


@pytest.mark.parametrize("scheme", ["upstream", "plan", "folded"])
@pytest.mark.parametrize("train", ["all", "decoder"])
def test_what_goes_in_comes_out(scheme: Any, train: Any) -> None:
    model = _generator(scheme, train)
    before = {path: np.array(array) for path, array in _trained(model).items()}
    packed = Packed(model, apart=TEXT_SIDE)
    assert set(packed.unpack(packed.arrays)) == set(before)
    slow, rest = packed.paths(0), packed.paths(1)
    assert all(path.startswith(TEXT_SIDE) for path in slow)
    assert not any(path.startswith(TEXT_SIDE) for path in rest)
    assert bool(slow) == (train == "all")
    for found in (_trained(model), packed.unpack(packed.pack(_trained(model)))):
        assert all(np.array_equal(found[path], array) for path, array in before.items())


def test_a_full_block_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    few = len(Packed(_generator()).blocks)
    monkeypatch.setattr(packed_module, "_LARGEST", 2000)
    packed = Packed(_generator())
    assert len(packed.blocks) > few
    assert all(len(b.slots) == 1 or sum(s.size for s in b.slots) <= 2000 for b in packed.blocks)


def test_a_net_and_its_gradients_are_the_same() -> None:
    mx.random.seed(1)
    model = MultiPeriodDiscriminator(tiny_config())
    wav = mx.random.normal((2, 1600, 1))

    def loss() -> mx.array:
        return sum((mx.sum(mx.square(j.score)) for j in model(wav)), start=mx.array(0.0))

    value, tree = nn.value_and_grad(model, loss)()
    leaves: Any = tree_flatten(tree)
    packed = Packed(model)

    def of_blocks(arrays: Any) -> mx.array:
        with packed.in_use(arrays):
            return loss()

    again, blocks = packed.value_and_grad(of_blocks)
    assert again.item() == pytest.approx(value.item(), rel=1e-6)
    once_more, same = packed.value_and_grad_in_use(loss)
    assert mx.array_equal(once_more, again)
    for group, others in zip(blocks, same, strict=True):
        assert list(group) == list(others)
        assert all(mx.array_equal(group[name], others[name]) for name in group)
    found = packed.unpack(blocks)
    assert set(found) == {path for path, _ in leaves}
    for path, gradient in leaves:
        scale = float(np.abs(np.array(gradient)).max())
        np.testing.assert_allclose(found[path], gradient, rtol=1e-4, atol=1e-5 * scale)


def test_weights_that_others_set_are_taken_up() -> None:
    model = _generator()
    packed = Packed(model)
    model.dec.conv_pre["weight"] = model.dec.conv_pre["weight"] + 1
    expected = np.array(model.dec.conv_pre["weight"])
    packed.adopt()
    assert np.array_equal(packed.unpack(packed.arrays)["dec.conv_pre.weight"], expected)
    given = packed.arrays[0]
    packed.adopt()  # nothing has changed since
    assert packed.arrays[0] is given


def test_the_gradient_of_weight_norm_is_mlxs_own() -> None:
    mx.random.seed(2)
    g, v, c = (mx.random.normal(shape) for shape in ((6, 1, 1), (6, 5, 4), (6, 5, 4)))

    def plain(g: mx.array, v: mx.array) -> mx.array:
        return mx.sum(c * (g * v / mx.sqrt(mx.sum(v * v, axis=(1, 2), keepdims=True))))

    def ours(g: mx.array, v: mx.array) -> mx.array:
        return mx.sum(c * fold_weight(g, v, "conv1d"))

    for a, b in zip(mx.grad(ours, (0, 1))(g, v), mx.grad(plain, (0, 1))(g, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["upstream", "folded"])
def test_the_pull_of_blocks_is_that_of_layers(scheme: Any) -> None:
    model = _generator(scheme)
    anchor = take_anchor(model)
    before = {path: np.array(array) for path, array in anchor.items()}
    mx.random.seed(3)
    moved = [(path, a + 0.1 * mx.random.normal(a.shape)) for path, a in _trained(model).items()]
    model.update(tree_unflatten(moved))
    expected = pretrained_regularization(model, anchor, 0.5)
    packed = Packed(model)
    pull = PackedPull(packed, model, anchor, 0.5)
    value, gradients = packed.value_and_grad(pull)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(np.array_equal(anchor[path], array) for path, array in before.items())
    _, tree = nn.value_and_grad(model, lambda: pretrained_regularization(model, anchor, 0.5))()
    leaves: Any = tree_flatten(tree)
    found = packed.unpack(gradients)
    for path, gradient in leaves:
        np.testing.assert_allclose(found[path], gradient, rtol=1e-3, atol=1e-7)


def test_moments_keep_the_form_of_mlxs_optimizers() -> None:
    """Files name a moment by the path of its tensor; a state of theirs is taken up as it is."""
    model, judge = _generator(), MultiPeriodDiscriminator(tiny_config())
    theirs = build_optimizers(model.config)
    set_learning_rates(theirs, 2.0, 3.0, 0.5)
    theirs.generator.init(model.trainable_parameters())
    theirs.discriminator.init(judge.trainable_parameters())
    for state in (*theirs.generator.state["states"], theirs.discriminator.state):
        state["step"] = mx.array(7, mx.uint64)
    theirs.discriminator.state["discriminators"][0]["conv_post"]["bias"]["m"] += 0.25
    step = GANStep(model, judge, build_optimizers(model.config), compiled=False)
    step.set_moments(theirs.generator.state, theirs.discriminator.state)
    for ours, other in (
        (step.moments().generator, theirs.generator.state),
        (step.moments().discriminator, theirs.discriminator.state),
    ):
        found: Any = dict(tree_flatten(ours))
        wanted: Any = dict(tree_flatten(other))
        assert set(found) == set(wanted)
        assert all(mx.array_equal(found[name], wanted[name]) for name in wanted)
