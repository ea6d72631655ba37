"""Synthesis that is recorded and played back, as on NVIDIA GPUs; here on a CPU."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits import accel
from mlx_vits.accel.cuda.recording import Recorder
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.synthesis.decoding import Request, decode
from mlx_vits.synthesis.voice import Voice
from tests.support.tiny import tiny_config


class Recorded(Voice):
    """A voice whose synthesis is recorded, and that counts how often it is described."""

    def __init__(self, version: str = "v2", limit: int = 3):
        mx.random.seed(1)
        super().__init__(SynthesizerTrn(tiny_config(version)))
        self.described = 0

        def counted(model: SynthesizerTrn, request: Request, speed: float) -> mx.array:
            self.described += 1
            return decode(model, request, speed)

        self.recorder = self._decode = Recorder(counted, limit)


def say(voice: Voice, codes: int = 6, seed: int = 3, **changes: Any) -> np.ndarray:
    given: dict[str, Any] = {
        "codes": np.arange(codes)[None, None],
        "text": np.arange(5)[None],
        "refer": mx.random.uniform(shape=(1, 1025, 30), key=mx.random.key(seed)),
    }
    if voice.config.model.is_pro:
        given["sv_emb"] = mx.ones((1, voice.config.reduced_dims.sv_dim))
    with accel.use("off"):
        return voice.decode(**{**given, **changes})


@pytest.mark.parametrize("version", ["v2", "v2Pro"])
def test_what_is_played_back_sounds_the_same(version: str) -> None:
    voice = Recorded(version)
    plain = Voice(voice.model)
    for seed, scale in ((3, 0.5), (3, 0.5), (4, 0.5), (4, 0.1)):
        theirs = say(plain, seed=seed, noise_scale=scale)
        before = voice.described
        ours = say(voice, seed=seed, noise_scale=scale)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert voice.described == before  # the last was not described again


def test_a_recording_for_every_length_and_speed() -> None:
    voice = Recorded(limit=4)
    kinds: list[dict[str, Any]] = [{}, {"codes": 7}, {"speed": 1.25}]
    for _ in range(3):
        lengths = [len(say(voice, **kind)) for kind in kinds]
    assert voice.described == 2 * len(kinds)
    assert len(set(lengths)) == 3


def test_few_shapes_are_remembered() -> None:
    voice = Recorded(limit=2)
    for codes in (4, 4, 5, 5, 6, 6):
        say(voice, codes)
    before = voice.described
    say(voice, 5)
    assert voice.described == before
    say(voice, 4)
    assert voice.described == before + 1


def test_new_weights_are_heard() -> None:
    voice = Recorded()
    for _ in range(2):
        before = say(voice)
    leaves: Any = tree_flatten(voice.model.parameters())
    changed = [(name, array * 1.01) for name, array in leaves if name.startswith("dec.")]
    voice.model.update(tree_unflatten(changed))
    after = say(voice)
    assert not np.array_equal(after, before)
    np.testing.assert_allclose(after, say(Voice(voice.model)), rtol=1e-5, atol=1e-6)
