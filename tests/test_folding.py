"""A voice speaks with plain weights: the same sound, and what it holds and saves stays normed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits import accel
from mlx_vits.checkpoints.base import load_discriminator, load_generator
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn import weight_norm
from mlx_vits.nn.layers import set_compute_dtype
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.synthesis.folding import fold_model
from mlx_vits.synthesis.loading import load
from mlx_vits.synthesis.voice import Voice
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig
from tests.support.tiny import SEGMENT, make_base, make_voice, tiny_config

CODES = np.arange(12)[None, None]
TEXT = np.arange(7)[None]


def refer() -> mx.array:
    return mx.random.uniform(shape=(1, 1025, 40), key=mx.random.key(3))


def make_voice_of(version: str) -> Voice:
    mx.random.seed(1)
    return Voice(SynthesizerTrn(tiny_config(version)))


def speak(voice: Voice) -> np.ndarray:
    vector = mx.ones((1, voice.config.reduced_dims.sv_dim))
    return voice.decode(CODES, TEXT, refer(), sv_emb=vector if "Pro" in voice.version else None)


def unfolded(voice: Voice) -> np.ndarray:
    class Itself:
        def model(self) -> SynthesizerTrn:
            return voice.model

    other = Voice(voice.model)
    other._folding = Itself()  # type: ignore[assignment]
    return speak(other)


def assert_same_sound(ours: np.ndarray, theirs: np.ndarray) -> None:
    """But for the order of sums, where the decoder goes by pieces of time."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("version", ["v1", "v2", "v2ProPlus"])
@pytest.mark.parametrize("backend", ["off", "cpu", "cuda"])
def test_the_sound_is_that_of_unfolded_weights(version: str, backend: accel.Backend) -> None:
    with accel.use(backend):
        voice = make_voice_of(version)
        assert_same_sound(speak(voice), unfolded(voice))


def test_every_weight_is_folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    voice = make_voice_of("v2")
    normed = [path for path, _ in named(voice.model) if path.endswith("weight_v")]
    spoken = {path for path in normed if not path.startswith("enc_q.")}
    assert len(spoken) > 20
    calls = []
    for layer in (weight_norm.WeightNormConv1d, weight_norm.WeightNormConvTranspose1d):
        whole: Any = layer.effective_weight
        monkeypatch.setattr(
            layer, "effective_weight", lambda it, f=whole: (calls.append(1), f(it))[1]
        )
    first = speak(voice)
    assert len(calls) == len(spoken)
    assert np.array_equal(speak(voice), first)
    assert len(calls) == len(spoken)


def named(model: Any) -> list[tuple[str, mx.array]]:
    leaves: Any = tree_flatten(model.parameters())
    return leaves


def test_the_twin_holds_plain_weights_and_shares_the_rest() -> None:
    model = make_voice_of("v2").model
    twin = fold_model(model)
    ours, theirs = dict(named(model)), dict(named(twin))
    assert not [path for path in theirs if path.endswith(("weight_g", "weight_v"))]
    assert not [path for path in theirs if path.startswith("enc_q.")]
    for path, array in theirs.items():
        if path in ours:
            assert array is ours[path], path
        else:
            assert path.removesuffix("weight") + "weight_v" in ours, path
    assert set(ours) - set(theirs) == {
        path
        for path in ours
        if path.endswith(("weight_g", "weight_v")) or path.startswith("enc_q.")
    }


@pytest.mark.parametrize("part", ["dec.resblocks", "enc_p", "dec.conv_pre"])
def test_a_model_that_learns_is_heard_as_it_is_now(part: str) -> None:
    voice = make_voice_of("v2")
    before = speak(voice)
    moved = [(path, array * 1.5) for path, array in named(voice.model) if path.startswith(part)]
    voice.model.update(tree_unflatten(moved))
    after = speak(voice)
    assert not np.array_equal(after, before)
    assert_same_sound(after, unfolded(voice))


def test_what_is_saved_stays_as_it_was(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    voice = load(tmp_path / "base")
    before = state_of(voice.model)
    speak(voice)
    speak(load(voice.save(tmp_path / "voice.safetensors")))
    after = state_of(load(tmp_path / "voice.safetensors").model)
    assert list(after) == list(before)
    assert all(mx.array_equal(after[name], array) for name, array in before.items())


def test_a_run_hears_the_weights_of_its_last_step(tmp_path: Path) -> None:
    """The same voice before and after updates, however the trainer holds the weights."""
    base = make_base(tmp_path / "base")
    prepared = prepare_voice(
        make_voice(tmp_path / "clips", 3), tmp_path / "made", base, tiny_config()
    )
    file = base.read_generator()
    generator = load_generator(file)
    options = VITSTrainingConfig(steps=2, batch_size=1, lr_g=1e-3, segment_size=SEGMENT)
    judge = load_discriminator(base.discriminator, file.config)
    trainer = VITSTrainer(generator, judge, PreparedVoice(prepared, file.config), options)
    voice = Voice(generator)
    heard = [speak(voice)]
    for _ in trainer.steps():
        heard.append(speak(voice))
        assert_same_sound(heard[-1], unfolded(voice))
        assert not np.array_equal(heard[-1], heard[-2])


def test_a_model_in_training_in_bf16_speaks_in_fp32() -> None:
    """As its saved voice will: weights are fp32 in both."""
    voice = make_voice_of("v2")
    before = speak(voice)
    set_compute_dtype(voice.model, mx.bfloat16)
    assert np.array_equal(speak(Voice(voice.model)), before)
    assert voice.model.dec.cond.compute_dtype == mx.bfloat16  # training goes on in its own type
