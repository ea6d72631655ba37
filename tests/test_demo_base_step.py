"""The demo base's fast step against the product's, and its further losses."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.training import losses
from mlx_vits.training.optimizers import build_optimizers, set_learning_rates
from mlx_vits.training.step import Batch, GANStep, draw_step
from scripts.demo_base.discriminator import FastDiscriminator
from scripts.demo_base.flat import ZERO, Flat
from scripts.demo_base.generator import FastBatch, FastGenerator
from scripts.demo_base.losses import (
    ExtraWeights,
    attention_loss,
    envelope_loss,
    matched_feature_loss,
    score_loss,
    stft_loss,
)
from scripts.demo_base.settings import read_settings
from scripts.demo_base.step import FastStep, Rates
from scripts.demo_base.train import training_config

# Three clips of 24, 20 and 14 frames; widths that are no multiples of four, as the demo's last
# stage has, and kernels of several lengths.
FRAMES, PHONEMES = (24, 20, 14), (7, 5, 3)
CONFIG: dict[str, Any] = {
    "train": {"segment_size": 3200},
    "model": {
        "inter_channels": 8,
        "hidden_channels": 12,
        "filter_channels": 20,
        "n_heads": 2,
        "n_layers": 2,
        "p_dropout": 0.0,
        "upsample_initial_channel": 24,
        "upsample_rates": [10, 8, 4, 2],
        "upsample_kernel_sizes": [16, 16, 8, 4],
        "resblock_kernel_sizes": [3, 5, 7],
        "gin_channels": 16,
        "version": "v2",
    },
    "reduced_dims": {
        "ssl_dim": 12,
        "mrte_hidden": 16,
        "codebook_size": 32,
        "style_hidden": 8,
        "flow_wn_layers": 2,
        "flow_n_flows": 4,
        "enc_q_wn_layers": 2,
        "disc_width": 0.0625,
        "dropout_everywhere": 0.0,
    },
}
LEARNING_RATE = 1e-3
SAME_NAMES = ("loss_mel", "loss_kl", "loss_d", "loss_fm", "loss_gen", "peak_fake")


class Both:
    """The product's step and the fast one, with the same weights and the same batch."""

    def __init__(self) -> None:
        mx.random.seed(0)
        random = np.random.default_rng(0)
        config = Config.from_dict(CONFIG)
        generator, discriminator = SynthesizerTrn(config), MultiPeriodDiscriminator(config)
        generator.ssl_proj.freeze()
        generator.quantizer.freeze()
        generator.quantizer.codebook.embed = _normal(random, 32, 12)
        for layer in generator.flow.flows[::2]:
            layer.post["weight"] = 0.1 * _normal(random, *layer.post["weight"].shape)
        optimizers = build_optimizers(config)
        set_learning_rates(optimizers, LEARNING_RATE, LEARNING_RATE, 1.0)
        self.fast = FastStep(generator, discriminator)
        self.product = GANStep(generator, discriminator, optimizers, compiled=False)
        self.batch = _batch(random, config)
        self.config = config

    def fast_batch(self, starts: mx.array, wav: mx.array) -> FastBatch:
        generator, batch = self.product.generator, self.batch
        return FastBatch(
            quantized=generator.quantizer(generator.ssl_proj(batch.ssl)).values,
            spec=batch.spec,
            mask=_mask(batch.spec_lengths, batch.spec.shape[1]),
            text=batch.text,
            text_mask=_mask(batch.text_lengths, batch.text.shape[1]),
            starts=starts,
            wav=wav,
            places=mx.full(batch.spec.shape[:2], -1, mx.int32),
            style_noise=mx.zeros((len(batch.spec), self.config.model.gin_channels)),
        )


def _normal(random: np.random.Generator, *shape: int) -> mx.array:
    return mx.array(random.normal(size=shape).astype(np.float32))


def _mask(lengths: mx.array, length: int) -> mx.array:
    return (mx.arange(length)[None, :, None] < lengths[:, None, None]).astype(mx.float32)


def _batch(random: np.random.Generator, config: Config) -> Batch:
    clips, longest = len(FRAMES), max(FRAMES)
    lengths, letters = mx.array(FRAMES), mx.array(PHONEMES)
    spec = mx.abs(_normal(random, clips, longest, config.data.spec_channels))
    return Batch(
        ssl=_normal(random, clips, longest, 12),
        spec=spec * _mask(lengths, longest),
        spec_lengths=lengths,
        wav=0.1 * _normal(random, clips, longest * config.data.hop_length, 1),
        text=mx.array(random.integers(1, 700, (clips, max(PHONEMES))).astype(np.int32)),
        text_lengths=letters,
        sv_emb=mx.zeros((clips, 0)),
    )


def _batch_with_places(both: Both) -> tuple[Any, Any]:
    """A batch of which it is known where each frame's phoneme is, and what is drawn for it."""
    draws = draw_step(mx.random.key(9), both.batch, both.config)
    batch = both.fast_batch(draws.ids_slice, both.product.real_segment(both.batch, draws)[..., 0])
    return batch._replace(places=mx.zeros(batch.places.shape, mx.int32)), draws


@pytest.fixture(scope="module")
def after_two_steps() -> Any:
    both, said = Both(), []
    for number in range(2):
        draws = draw_step(mx.random.key(number), both.batch, both.config)
        real = both.product.real_segment(both.batch, draws)[..., 0]
        batch = both.fast_batch(draws.ids_slice, real)
        ours = both.fast(batch, draws.noise, Rates(LEARNING_RATE, LEARNING_RATE))
        theirs = both.product.run(both.batch, draws).losses
        mx.eval(ours, both.fast.nets, theirs, both.product.state)
        said.append((ours, theirs))
    return both, said


@pytest.mark.parametrize("name", SAME_NAMES)
def test_losses_are_the_products(after_two_steps: Any, name: str) -> None:
    # fp32 in another order of summation; the second step sees weights that have moved.
    for ours, theirs in after_two_steps[1]:
        assert ours[name].item() == pytest.approx(theirs[name].item(), rel=2e-4)


def test_gradients_have_the_products_norms(after_two_steps: Any) -> None:
    for ours, theirs in after_two_steps[1]:
        for name in ("grad_norm_g", "grad_norm_d"):
            assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-3)


@pytest.mark.parametrize("which", ["g", "d"])
def test_updated_weights_are_the_products(after_two_steps: Any, which: str) -> None:
    both, _ = after_two_steps
    net = both.fast.generator if which == "g" else both.fast.discriminator
    model = both.product.generator if which == "g" else both.product.discriminator
    ours = net.flat.unpack(both.fast.nets[which].weights)
    theirs = dict(tree_flatten(model.parameters()))
    frozen = {name for name in theirs if name.startswith(("ssl_proj", "quantizer"))}
    assert set(ours) == set(theirs) - frozen
    # Two updates of 1e-3 an element: AdamW's first steps have that size whatever the gradient's,
    # so an element whose gradient is rounding noise may go the other way. Hardly any does.
    apart = [np.abs(np.array(ours[n]) - np.array(theirs[n])).ravel() for n in ours]
    apart = np.concatenate(apart)
    assert np.mean(apart > 2e-5) < 2e-3
    assert apart.max() < 4.1 * LEARNING_RATE


def test_mean_weights_follow(after_two_steps: Any) -> None:
    both, _ = after_two_steps
    net = both.fast.nets["g"]
    assert 0 < float(mx.max(mx.abs(net.mean - net.weights))) < 3 * LEARNING_RATE


def test_flow_and_its_reverse() -> None:
    both = Both()
    g = both.fast.generator
    weights = g.flat(both.fast.nets["g"].weights)
    z, style = _normal(np.random.default_rng(1), 2, 9, 8), mx.ones((2, 16)) * 0.3
    mask = mx.ones((2, 9, 1))
    there = g.flow(weights, z, mask, style)
    product = both.product.generator.flow(z, mask, style[:, None])
    assert np.abs(np.array(there - product)).max() < 1e-5
    back = g.flow(weights, there, mask, style, reverse=True)
    assert np.abs(np.array(back - z)).max() < 1e-5
    assert np.abs(np.array(there - z)).max() > 0.01


def test_the_prior_is_decoded_beside(after_two_steps: Any) -> None:
    both, _ = after_two_steps
    batch, draws = _batch_with_places(both)
    step = FastStep(
        both.product.generator,
        both.product.discriminator,
        ExtraWeights(stft=4.0, envelope=20.0, attention=2.0),
    )
    before = step.nets["d"].weights
    parts = step(batch, draws.noise, Rates(1e-3, 1e-3, 0.1, adversarial=False, spoken=2))
    total = sum(v.item() for n, v in parts.items() if n.startswith("loss_") and n != "loss_total")
    assert parts["loss_total"].item() == pytest.approx(total, rel=1e-5)
    assert {"loss_stft", "loss_envelope", "loss_attention"} <= set(parts)
    assert "loss_d" not in parts
    assert mx.array_equal(step.nets["d"].weights, before).item()
    out = step.generator(step.generator.flat(step.nets["g"].weights), batch, draws.noise, spoken=2)
    assert out.wav.shape == (5, 3200)


def test_the_prior_learns_alone(after_two_steps: Any) -> None:
    both, _ = after_two_steps
    batch, draws = _batch_with_places(both)
    extra = ExtraWeights(stft=4.0, envelope=20.0, attention=2.0)
    nets = both.product.generator, both.product.discriminator
    step, whole = (FastStep(*nets, extra) for _ in range(2))
    before = step.generator.flat.unpack(step.nets["g"].weights)
    mean = step.nets["g"].mean
    rates = Rates(1e-3, 1e-3, adversarial=False, spoken=2, only_prior=True)
    parts = step(batch, draws.noise, rates)
    others = whole(batch, draws.noise, rates._replace(only_prior=False))
    assert {"loss_kl", "loss_envelope", "loss_attention"} == {
        name for name in parts if name.startswith("loss_") and name != "loss_total"
    }
    for name in ("loss_kl", "loss_envelope", "loss_attention"):
        assert parts[name].item() == pytest.approx(others[name].item(), rel=1e-5)
    after = step.generator.flat.unpack(step.nets["g"].weights)
    moved = {name for name in after if not mx.array_equal(after[name], before[name]).item()}
    assert {name.split(".")[0] for name in moved} == {"enc_p", "flow"}
    assert any(name.startswith("enc_p.mrte.") for name in moved)
    is_prior = np.array(step._is_prior)
    np.testing.assert_array_equal(
        np.array(step.nets["g"].mean)[~is_prior], np.array(mean)[~is_prior]
    )
    assert not np.array(step.nets["g"].m)[~is_prior].any()


@pytest.mark.slow
@pytest.mark.parametrize("spoken", [0, 2])
def test_compiled_the_step_is_the_same(after_two_steps: Any, spoken: int) -> None:
    both, _ = after_two_steps
    draws = draw_step(mx.random.key(9), both.batch, both.config)
    real = both.product.real_segment(both.batch, draws)[..., 0]
    batch, extra = both.fast_batch(draws.ids_slice, real), ExtraWeights(stft=4.0, envelope=20.0)
    nets = both.product.generator, both.product.discriminator
    eager, compiled = (FastStep(*nets, extra, compiled=kind) for kind in (False, True))
    for pull in (0.1, 0.3):  # what changes from step to step must be no constant
        rates = Rates(1e-3 * pull, 1e-3, pull, adversarial=spoken > 0, spoken=spoken)
        ours, theirs = (step(batch, draws.noise, rates) for step in (compiled, eager))
        for name, value in theirs.items():
            assert ours[name].item() == pytest.approx(value.item(), rel=1e-4), name
    apart = mx.abs(compiled.nets["g"].weights - eager.nets["g"].weights)
    assert float(mx.mean(apart)) < 1e-7


def test_no_share_of_the_kl_leaves_the_posterior_alone() -> None:
    both = Both()
    draws = draw_step(mx.random.key(0), both.batch, both.config)
    batch = both.fast_batch(draws.ids_slice, both.product.real_segment(both.batch, draws)[..., 0])
    generator, vector = both.fast.generator, both.fast.nets["g"].weights

    def kl(vector: mx.array, pull: float) -> mx.array:
        out = generator(generator.flat(vector), batch, draws.noise, pull)
        return mx.mean(mx.square(out.z_p - out.prior.m_p)) + mx.mean(out.logs_q)

    norms = {}
    for pull in (0.0, 1.0):
        gradient = generator.flat.unpack(mx.grad(kl)(vector, pull))
        norms[pull] = max(float(mx.max(mx.abs(gradient[n]))) for n in gradient if "enc_q" in n)
    assert norms[0.0] == 0
    assert norms[1.0] > 0


def test_losses_from_scratch_are_zero_for_a_perfect_copy() -> None:
    wav = 0.1 * _normal(np.random.default_rng(0), 2, 4800)
    # The products of equal rows may be summed in another order: a rounding or two.
    assert abs(stft_loss(wav, wav).item()) < 1e-6
    assert abs(envelope_loss(wav, wav).item()) < 1e-6
    assert stft_loss(wav, 2 * wav).item() > 0.5
    attention = mx.zeros((1, 2, 3, 4)) + mx.array([0.0, 1.0, 0.0, 0.0])
    looked = attention_loss(attention, mx.array([[1, 1, -1]]))
    assert looked.found.item() == 1
    assert abs(looked.loss.item()) < 2e-3


def test_losses_of_the_judge_are_the_products_taken_together() -> None:
    random, count, others = np.random.default_rng(0), 3, 2
    rows = 2 * count + others
    maps = [[_normal(random, rows, 50, 4), _normal(random, rows, 20, 8)]] * 2
    scores = [_normal(random, rows, 30), _normal(random, rows, 40)]
    real = [[map_[:count] for map_ in some] for some in maps]
    own = [[map_[count : 2 * count] for map_ in some] for some in maps]
    there = losses.feature_loss(real, own).item()
    assert matched_feature_loss(maps, count).item() == pytest.approx(there, rel=1e-5)
    counts = [count, count + others]
    weights = np.repeat([1 / c for c in counts], counts)
    judged = [s[:count] for s in scores], [s[count:] for s in scores]
    there = losses.discriminator_loss(*judged).item()
    found = score_loss(scores, np.repeat([1.0, 0.0], counts), weights)
    assert found.item() == pytest.approx(there, rel=1e-5)
    there = losses.generator_loss(judged[1]).item() * counts[1]
    found = score_loss(scores, 1.0, np.repeat([0.0, 1.0], counts))
    assert found.item() == pytest.approx(there, rel=1e-5)


def test_a_weight_may_not_be_forgotten() -> None:
    flat = Flat({"a.weight": (2, 3), "a.bias": (2,)})
    flat.add("a", np.concatenate([flat.weights["a.weight"], np.full((2, 1), ZERO)], axis=1))
    with pytest.raises(ValueError, match=r"a\.bias"):
        flat.finish()


def test_the_shipped_sizes_can_be_merged() -> None:
    config = training_config(read_settings())
    sizes = {"g": 0, "d": 0}
    for name, model in (("g", SynthesizerTrn(config)), ("d", MultiPeriodDiscriminator(config))):
        shapes = {path: array.shape for path, array in tree_flatten(model.parameters())}
        net = FastGenerator(config, shapes) if name == "g" else FastDiscriminator(shapes)
        sizes[name] = net.flat.size
    assert 2 * (sizes["g"] + sizes["d"]) < 8e6  # bytes in fp16


def test_a_configuration_that_cannot_be_merged_is_refused() -> None:
    dilations = [[1, 3, 5], [1, 3, 5], [1, 3, 7]]
    model = CONFIG["model"] | {"resblock_dilation_sizes": dilations}
    with pytest.raises(CheckpointError, match="dilations"):
        FastGenerator(Config.from_dict(CONFIG | {"model": model}), {})
