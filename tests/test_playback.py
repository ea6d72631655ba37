"""Synthesis that is recorded and played back; made to on a CPU, where it is not by itself."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.compilation import stop_fusing
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.synthesis import playback
from mlx_vits.synthesis.folding import Folding
from mlx_vits.synthesis.playback import Playback
from mlx_vits.synthesis.voice import Voice
from tests.support.tiny import tiny_config


def _voice(version: str = "v2", *, limit: int = 3, plays_back: bool | None = True) -> Voice:
    mx.random.seed(1)
    if mx.cuda.is_available():
        stop_fusing()  # as where CUDA plays back by itself
    voice = Voice(SynthesizerTrn(tiny_config(version)))
    voice._playback = Playback(Folding(voice.model), plays_back=plays_back, limit=limit)
    return voice


def _decode(voice: Voice, codes: int = 6, seed: int = 3, **changes: Any) -> np.ndarray:
    refer = mx.random.uniform(shape=(1, 1025, 30), key=mx.random.key(seed))
    given: dict[str, Any] = {"codes": np.arange(codes)[None, None], "text": np.arange(5)[None]}
    if voice.config.model.is_pro:
        given["sv_emb"] = mx.ones((1, voice.config.reduced_dims.sv_dim))
    return voice.decode(**{"refer": refer, **given, **changes})


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each time that Python describes synthesis."""
    found: list[int] = []
    whole = playback.speak
    monkeypatch.setattr(playback, "speak", lambda *a: (found.append(1), whole(*a))[1])
    return found


@pytest.mark.machine("g++")
@pytest.mark.parametrize("version", ["v2", "v2Pro"])
def test_what_is_played_back_sounds_the_same(version: str, times: list[int]) -> None:
    voice, at_once = _voice(version), _voice(version, plays_back=False)
    for seed, scale in ((3, 0.5), (3, 0.5), (4, 0.5), (4, 0.1)):
        theirs = _decode(at_once, seed=seed, noise_scale=scale)
        before = len(times)
        ours = _decode(voice, seed=seed, noise_scale=scale)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(times) == before  # the last was not described again


@pytest.mark.machine("g++")
def test_a_shape_of_its_own_for_every_length_and_speed(times: list[int]) -> None:
    voice = _voice(limit=4)
    kinds: list[dict[str, Any]] = [{}, {"codes": 7}, {"speed": 1.25}]
    for _ in range(3):
        lengths = [len(_decode(voice, **kind)) for kind in kinds]
    assert len(times) == 2 * len(kinds)
    assert len(set(lengths)) == 3


@pytest.mark.machine("g++")
def test_few_shapes_are_remembered(times: list[int]) -> None:
    voice = _voice(limit=2)
    for codes in (4, 4, 5, 5, 6, 6):
        _decode(voice, codes)
        assert len(voice._playback._met) <= 2
    before = len(times)
    _decode(voice, 5)
    assert len(times) == before
    _decode(voice, 4)
    assert len(times) == before + 1


@pytest.mark.machine("g++")
def test_new_weights_are_heard() -> None:
    voice = _voice()
    for _ in range(2):
        before = _decode(voice)
    leaves: Any = tree_flatten(voice.model.parameters())
    changed = [(name, array * 1.01) for name, array in leaves if name.startswith("dec.")]
    voice.model.update(tree_unflatten(changed))
    after = _decode(voice)
    assert not np.array_equal(after, before)
    other = Voice(voice.model)
    other._playback = Playback(Folding(voice.model), plays_back=False)
    np.testing.assert_allclose(after, _decode(other), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(mx.cuda.is_available(), reason="CUDA plays back")
def test_by_itself_only_cuda_plays_back(times: list[int]) -> None:
    voice = _voice(plays_back=None)
    for _ in range(3):
        _decode(voice)
    assert len(times) == 3
