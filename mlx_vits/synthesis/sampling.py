"""How the GPT's next code is drawn from its logits.

In upstream's order: repetition penalty, top-p, temperature, top-k, softmax, and the largest of
p / e with e exponential, which is a draw from p. Two things differ from what other samplers do:
top-p reads the logits before the temperature changes them, and drops the token whose probability
crosses the threshold.

Source: GPT-SoVITS `AR/models/utils.py` (`logits_to_probs`, `sample`). Axes: B batch, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real

import mlx.core as mx

_LEAST_TEMPERATURE = 1e-5
_BLOCK = 64  # steps whose noise is drawn at once
_MOST_BLOCKS = 1 << 10


@dataclass(frozen=True)
class Sampling:
    """How much is left to chance; the defaults are upstream's.

    Attributes:
        top_k: the best k codes stay, and those as good as the last of them; 1 leaves no chance.
        top_p: what is left once more than this share of the probability has been passed is
            dropped; 1 keeps all.
        temperature: above 1 evens the probabilities out, below 1 sharpens them.
        repetition_penalty: above 1 makes codes that were said before less likely.

    Raises:
        ValueError: a value has no meaning.
    """

    top_k: int = 15
    top_p: float = 1.0
    temperature: float = 1.0
    repetition_penalty: float = 1.35

    def __post_init__(self) -> None:
        if not (isinstance(self.top_k, Integral) and self.top_k >= 1):
            raise ValueError(f"top_k is {self.top_k}; it has to be a whole number from 1 on")
        for name, lowest, most in (
            ("top_p", 0.0, 1.0),
            ("temperature", 0.0, 100.0),
            ("repetition_penalty", 0.01, 100.0),
        ):
            value = getattr(self, name)
            if not (isinstance(value, Real) and lowest <= value <= most):
                raise ValueError(
                    f"{name} is {value}; it has to lie between {lowest:g} and {most:g}"
                )


def mark(codes: mx.array, count: int) -> mx.array:
    """Mark which of `count` codes occur: `(B, P)` ids to `(B, count)` boolean."""
    if codes.shape[1] == 0:
        return mx.zeros((codes.shape[0], count), mx.bool_)
    return mx.any(codes[..., None] == mx.arange(count), axis=1)


def penalize(logits: mx.array, said: mx.array, penalty: float) -> mx.array:
    """Make codes that were said before less likely, each once.

    Args:
        logits: `(B, V)`.
        said: `(B, V)` boolean.
    """
    if penalty == 1.0:
        return logits
    return mx.where(said, mx.where(logits < 0, logits * penalty, logits / penalty), logits)


def to_probabilities(logits: mx.array, sampling: Sampling) -> mx.array:
    """Turn penalized logits into probabilities `(B, V)`; 0 for what is dropped."""
    width = logits.shape[1]
    dropped = mx.array(-mx.inf, logits.dtype)
    if sampling.top_p < 1.0:
        best_first = -mx.sort(-logits, axis=-1)
        passed = mx.cumsum(mx.softmax(best_first, axis=-1), axis=-1)
        kept = mx.sum(passed <= sampling.top_p, axis=-1, keepdims=True)
        last = mx.take_along_axis(best_first, mx.maximum(kept, 1) - 1, axis=-1)
        logits = mx.where(logits < last, dropped, logits)
    logits = logits / max(sampling.temperature, _LEAST_TEMPERATURE)
    if sampling.top_k < width:
        last = mx.sort(logits, axis=-1)[:, width - sampling.top_k, None]
        logits = mx.where(logits < last, dropped, logits)
    return mx.softmax(logits, axis=-1)


def probabilities(
    logits: mx.array,
    previous: mx.array,
    *,
    top_k: int = Sampling.top_k,
    top_p: float = Sampling.top_p,
    temperature: float = Sampling.temperature,
    repetition_penalty: float = Sampling.repetition_penalty,
) -> mx.array:
    """Compute the probabilities that the next code is drawn with.

    Args:
        logits: `(B, V)`.
        previous: `(B, P)` ids of the codes before, those of the prompt too; P may be 0.
        top_k, top_p, temperature, repetition_penalty: see `Sampling`.

    Returns:
        `(B, V)`; 0 for what is dropped.

    Raises:
        ValueError: a setting has no meaning.
    """
    sampling = Sampling(top_k, top_p, temperature, repetition_penalty)
    said = mark(previous, logits.shape[1])
    return to_probabilities(penalize(logits, said, repetition_penalty), sampling)


def draw_token(probs: mx.array, noise: mx.array) -> mx.array:
    """Draw a code.

    Args:
        probs: `(B, V)`.
        noise: `(B, V)`, drawn from Exp(1), see `Noise`.

    Returns:
        `(B,)` ids.
    """
    return mx.argmax(probs / noise, axis=-1)


class Noise:
    """Exp(1) noise that depends on a row's seed and the step alone, not on the rest of a batch.

    Args:
        seeds: one for each row.
        width: V.
    """

    def __init__(self, seeds: Sequence[int], width: int):
        self.seeds, self.width = tuple(seeds), width
        self._block = -1
        self._drawn: dict[int, mx.array] = {}

    @cached_property
    def _keys(self) -> list[mx.array]:
        return [mx.random.split(mx.random.key(seed), _MOST_BLOCKS) for seed in self.seeds]

    def __call__(self, step: int, rows: Sequence[int]) -> mx.array:
        """Return the noise `(len(rows), V)` of these rows of the batch at a step."""
        block, place = divmod(step, _BLOCK)
        if block != self._block:
            self._block = block
            self._drawn = {row: self._draw(row) for row in rows}
        return mx.stack([self._drawn[row][place] for row in rows])

    def _draw(self, row: int) -> mx.array:
        shape = (_BLOCK, self.width)
        # Uniform numbers begin at 0 and stay below 1: e may be infinite but is never 0.
        return -mx.log(mx.random.uniform(shape=shape, key=self._keys[row][self._block]))
