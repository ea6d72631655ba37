"""Synthesis recorded once for a shape, and played back.

On CUDA, describing synthesis to MLX takes Python longer than the GPU computes. What was recorded
belongs to the weights and the shapes it was recorded with. Axes: B batch, K semantic codes,
L phonemes, T frames, F bins, C latent channels, N samples, V speaker vector.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import mlx.core as mx

from mlx_vits.compilation import plays_synthesis_back
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn.gradients import no_gradient
from mlx_vits.synthesis import pieces
from mlx_vits.synthesis.folding import Folding

LIMIT = 16  # shapes that are remembered


class Spoken(NamedTuple):
    """What is said, and how.

    Attributes:
        codes: `(B, K)`.
        text: `(B, L)`, phoneme ids.
        noise: `(B, T, C)`, standard normal.
        noise_scale: `()`.
        specs: of each reference `(B, T, F)`; of its own length, without padding.
        vectors: of each reference `(B, V)`, or none at all.
    """

    codes: mx.array
    text: mx.array
    noise: mx.array
    noise_scale: mx.array
    specs: list[mx.array]
    vectors: list[mx.array]


Function = Callable[[Spoken], mx.array]


class Playback:
    """Speaks with a model, at once or played back; on a CPU at once and in pieces.

    A shape is recorded when it is met for the second time: most sentences are said once.

    Args:
        folding: of the model.
        plays_back: None leaves it to the device.
        limit: shapes that are remembered, those met last.
    """

    def __init__(self, folding: Folding, *, plays_back: bool | None = None, limit: int = LIMIT):
        self._folding, self._plays_back, self._limit = folding, plays_back, limit
        self._model: SynthesizerTrn | None = None
        self._in_pieces: tuple[SynthesizerTrn, SynthesizerTrn] | None = None  # of which, which
        self._met: OrderedDict[Hashable, Function | None] = OrderedDict()

    def decode(self, spoken: Spoken, speed: float) -> mx.array:
        """A waveform `(B, N, 1)`; see `SynthesizerTrn.decode`."""
        model = self._folding.model()
        play = plays_synthesis_back() if self._plays_back is None else self._plays_back
        if play:
            return self._of(model, spoken, speed)(spoken)
        return speak(self._at_once(model), spoken, speed)

    def _at_once(self, model: SynthesizerTrn) -> SynthesizerTrn:
        if not pieces.pays():
            return model
        if self._in_pieces is None or self._in_pieces[0] is not model:
            self._in_pieces = model, pieces.in_pieces(model)
        return self._in_pieces[1]

    def _of(self, model: SynthesizerTrn, spoken: Spoken, speed: float) -> Function:
        if model is not self._model:
            self._met.clear()
            self._model = model
        shapes = [tuple(a.shape for a in arrays) for arrays in (spoken[:4], *spoken[4:])]
        key = (*shapes, speed)

        def at_once(spoken: Spoken) -> mx.array:
            return speak(model, spoken, speed)

        is_known = key in self._met
        function = self._met.pop(key, None)
        if is_known and function is None:
            function = mx.compile(at_once)
        self._met[key] = function
        if len(self._met) > self._limit:
            self._met.popitem(last=False)
        return function or at_once


def speak(model: SynthesizerTrn, spoken: Spoken, speed: float) -> mx.array:
    """A waveform `(B, N, 1)`, not to be differentiated."""
    with no_gradient():
        return _spoken(model, spoken, speed)


def _spoken(model: SynthesizerTrn, spoken: Spoken, speed: float) -> mx.array:
    styles = []
    for index, spec in enumerate(spoken.specs):
        vector = spoken.vectors[index] if spoken.vectors else None
        styles.append(model.embed_style(spec, mx.ones((*spec.shape[:2], 1)), vector))
    return model.decode(
        spoken.codes,
        spoken.text,
        styles,
        noise=spoken.noise,
        noise_scale=spoken.noise_scale,
        speed=speed,
    ).wav
