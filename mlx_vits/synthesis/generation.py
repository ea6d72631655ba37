"""Semantic codes from phonemes: the GPT reads them, then draws one code after another.

EOS cannot be drawn in the first 11 steps. It ends a sequence when it is drawn, and also when it has
the largest logit after the repetition penalty. Upstream's faults are off by default and come back
with `compat=True`, which its goldens are met with:

* where a limit ends a sequence, its first code is lost, and in a batch its last one;
* a batch without a prompt is read row by row, with a repetition penalty of 1.35 whatever was asked;
* a stream that is cut at pauses repeats the codes after a cut, and waits for a pause for ever.

Source: GPT-SoVITS `AR/models/t2s_model.py` (`infer_panel_naive`, `infer_panel_batch_infer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.config import BERT_CHANNELS
from mlx_vits.models.t2s import Reading, Text2SemanticDecoder
from mlx_vits.synthesis.sampling import (
    Noise,
    Sampling,
    draw_token,
    mark,
    penalize,
    to_probabilities,
)

MOST_STEPS = 1500  # a minute, at 25 codes a second
FIRST_STEPS_WITHOUT_EOS = 11
MUTE_CODE = 486  # a row of the published GPTs' table that stands for silence
_LOOK_AHEAD = 2
_PATIENCE = 2  # times the length of a chunk that a pause is waited for
_NO_PROMPT_PENALTY = 1.35

_Draws = Callable[[int, Sequence[int]], mx.array]


class Request(NamedTuple):
    """What a row is generated from.

    Attributes:
        phones: `(X,)` ids of prompt and text together.
        bert: `(X, 1024)`; None stands for zeros.
        seed: of the draws.
    """

    phones: mx.array
    bert: mx.array | None = None
    seed: int = 0


class Generated(NamedTuple):
    """What was generated.

    Attributes:
        codes: int32 `(N,)`, without prompt and EOS.
        ended: whether EOS ended it; if not, a limit did.
    """

    codes: np.ndarray
    ended: bool


class Chunk(NamedTuple):
    """Part of what is generated.

    Attributes:
        codes: int32 `(N,)`; none where the chunk before was the last that had any.
        is_final: whether nothing follows.
    """

    codes: np.ndarray
    is_final: bool


def limit_of(model: Text2SemanticDecoder, max_tokens: int | None = None) -> int:
    """Return the length at which a sequence ends without EOS: upstream's two limits, or fewer."""
    limit = min(MOST_STEPS, int(model.config.early_stop) + 1)
    return limit if max_tokens is None else min(limit, max_tokens)


def generate(
    model: Text2SemanticDecoder,
    request: Request,
    prompt: mx.array | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008
    *,
    max_tokens: int | None = None,
    noise: mx.array | None = None,
    compat: bool = False,
) -> Generated:
    """Generate the codes of one text.

    Args:
        prompt: `(P,)` codes of the recording whose words begin the phonemes; None for none.
        max_tokens: a limit of one's own, see `limit_of`.
        noise: `(steps, B, V)` drawn from Exp(1), in place of what the seeds give; a limit too.
        compat: see above.
    """
    [result] = _generate([request], model, prompt, sampling, max_tokens, noise)
    if compat and prompt is not None and not result.ended:
        return result._replace(codes=result.codes[1:])
    return result


def generate_batch(
    model: Text2SemanticDecoder,
    requests: Sequence[Request],
    prompt: mx.array | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008
    *,
    max_tokens: int | None = None,
    noise: mx.array | None = None,
    compat: bool = False,
) -> list[Generated]:
    """Generate the codes of several texts at once; a row leaves the batch when it has ended.

    With seeds that differ, each row is what `generate` makes of it but for rounding, whatever else
    is in the batch.

    Args:
        prompt, max_tokens, noise, compat: see `generate`; the prompt is that of all.
    """
    if compat and prompt is None:
        fixed = replace(sampling, repetition_penalty=_NO_PROMPT_PENALTY)
        return [
            generate(
                model,
                request,
                None,
                fixed,
                max_tokens=max_tokens,
                noise=None if noise is None else noise[:, row : row + 1],
            )
            for row, request in enumerate(requests)
        ]
    results = _generate(requests, model, prompt, sampling, max_tokens, noise)
    if not compat:
        return results
    return [r if r.ended else r._replace(codes=r.codes[:-1]) for r in results]


def stream(
    model: Text2SemanticDecoder,
    request: Request,
    prompt: mx.array | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008
    *,
    chunk: Literal["pause", "fixed"] = "pause",
    chunk_length: int = 16,
    threshold: float = 0.0,
    mute_code: int = MUTE_CODE,
    max_tokens: int | None = None,
    noise: mx.array | None = None,
    compat: bool = False,
) -> Iterator[Chunk]:
    """Generate the codes of one text, chunk by chunk.

    Args:
        prompt, max_tokens, noise, compat: see `generate`. The limits lose no code here.
        chunk: "pause" cuts where codes sound most like silence, "fixed" after `chunk_length`.
        chunk_length: of codes, the least that a chunk but the last has.
        threshold: how much like silence a pause has to be, as a cosine.
        mute_code: whose row in the table of codes stands for silence.

    Yields:
        Chunks; the last is marked, and is empty where nothing was left for it.
    """
    likeness = mute_likeness(model, mute_code) - threshold if chunk == "pause" else None
    pending: list[int] = []
    for step in _steps([request], model, prompt, sampling, max_tokens, noise):
        if not step.tokens:
            break
        pending += step.tokens
        if step.is_last:
            break
        cut = _cut(pending, chunk_length, likeness, waits=compat)
        if cut:
            yield Chunk(_int32(pending if compat else pending[:cut]), False)
            pending = pending[cut:]
    yield Chunk(_int32(pending), True)


def _cut(pending: list[int], least: int, likeness: np.ndarray | None, *, waits: bool) -> int:
    """Return how many of the codes make a chunk; 0 for none yet.

    Args:
        waits: wait for a pause however long it takes, as upstream does.
    """
    if likeness is None:
        return least if len(pending) >= least else 0
    if len(pending) < least + _LOOK_AHEAD:
        return 0
    scores = likeness[pending]
    scores[scores < 0] = -1
    scores[:-1] += scores[1:]
    if not waits:
        scores[: least - 1] = -np.inf
    best = int(np.argmax(scores))
    is_pause = scores[best] >= 0 and best + 1 >= least
    is_late = not waits and len(pending) >= _PATIENCE * least
    return best + 1 if is_pause or is_late else 0


def mute_likeness(model: Text2SemanticDecoder, mute_code: int = MUTE_CODE) -> np.ndarray:
    """Return how much each code is like silence, `(V,)`: the cosine of their rows in the table."""
    table = model.ar_audio_embedding.word_embeddings
    rows = table(mx.arange(model.config.vocab_size))
    rows = rows / mx.maximum(mx.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
    return np.array(rows @ rows[mute_code])


class _Step(NamedTuple):
    """Codes that one step drew for the rows that have not ended.

    Attributes:
        tokens: one for each row of `rows`.
        rows: of the batch.
        is_last: whether the limit is reached.
    """

    tokens: list[int]
    rows: list[int]
    is_last: bool


def _generate(
    requests: Sequence[Request],
    model: Text2SemanticDecoder,
    prompt: mx.array | None,
    sampling: Sampling,
    max_tokens: int | None,
    noise: mx.array | None,
) -> list[Generated]:
    codes: list[list[int]] = [[] for _ in requests]
    unfinished: list[int] = []
    for step in _steps(requests, model, prompt, sampling, max_tokens, noise):
        for row, token in zip(step.rows, step.tokens, strict=True):
            codes[row].append(token)
        unfinished = step.rows if step.is_last else []
    return [Generated(_int32(own), row not in unfinished) for row, own in enumerate(codes)]


def _steps(
    requests: Sequence[Request],
    model: Text2SemanticDecoder,
    prompt: mx.array | None,
    sampling: Sampling,
    max_tokens: int | None,
    noise: mx.array | None,
) -> Iterator[_Step]:
    """Draw code after code until all rows have ended or the limit is reached.

    What a step drew is read only when the next step is under way, so that the device never waits.

    Raises:
        FloatingPointError: the model computes NaN or infinity.
    """
    eos, width = model.config.EOS, model.config.vocab_size
    limit = limit_of(model, max_tokens)
    draws: _Draws = Noise([request.seed for request in requests], width)
    if noise is not None:
        draws, limit = partial(_given, noise), min(limit, len(noise))
    codes = mx.zeros((0,), mx.int32) if prompt is None else prompt.astype(mx.int32)
    codes = mx.broadcast_to(codes, (len(requests), *codes.shape))
    logits, reading = _prefill(model, requests, codes)
    is_finite = mx.isfinite(mx.sum(logits))
    said, rows = mark(codes, width), list(range(len(requests)))
    drawn = _draw(logits, said, sampling, draws(0, rows), 0, eos)
    mx.async_eval(drawn)
    for step in range(limit):
        is_last = step + 1 == limit
        if not is_last:
            said = said | mark(drawn[:, None], width)
            logits = model.step(drawn, reading)
            following = _draw(logits, said, sampling, draws(step + 1, rows), step + 1, eos)
            mx.async_eval(following)
        tokens: list[int] = drawn.tolist()  # type: ignore[assignment]
        if step == 0 and not is_finite.item():
            raise FloatingPointError("the T2S model computes NaN or infinity")
        alive = [place for place, token in enumerate(tokens) if token != eos]
        rows = [rows[place] for place in alive]
        yield _Step([tokens[place] for place in alive], rows, is_last)
        if not alive or is_last:
            return
        if len(alive) < len(tokens):
            reading.keep(alive)
            said, following = said[mx.array(alive)], following[mx.array(alive)]
        drawn = following


def _given(noise: mx.array, step: int, rows: Sequence[int]) -> mx.array:
    return noise[step, mx.array(list(rows))]


def _prefill(
    model: Text2SemanticDecoder, requests: Sequence[Request], codes: mx.array
) -> tuple[mx.array, Reading]:
    longest = max(len(request.phones) for request in requests)
    lengths = [len(request.phones) for request in requests]
    gaps = [longest - length for length in lengths]
    phones = mx.stack([mx.pad(r.phones, (gap, 0)) for r, gap in zip(requests, gaps, strict=True)])
    bert = None
    if any(request.bert is not None for request in requests):
        bert = mx.stack(
            [
                mx.zeros((longest, BERT_CHANNELS))
                if request.bert is None
                else mx.pad(request.bert, [(gap, 0), (0, 0)])
                for request, gap in zip(requests, gaps, strict=True)
            ]
        )
    return model.prefill(phones, codes, bert, mx.array(gaps) if any(gaps) else None)


def _draw(
    logits: mx.array, said: mx.array, sampling: Sampling, noise: mx.array, step: int, eos: int
) -> mx.array:
    """Draw the next codes `(B,)`; EOS where a sequence ends."""
    if step < FIRST_STEPS_WITHOUT_EOS:
        # Like cutting EOS, the last column, off.
        logits = mx.where(mx.arange(logits.shape[1]) == eos, -mx.inf, logits)
    logits = penalize(logits, said, sampling.repetition_penalty)
    token = draw_token(to_probabilities(logits, sampling), noise)
    return mx.where(mx.argmax(logits, axis=-1) == eos, eos, token)


def _int32(codes: list[int]) -> np.ndarray:
    return np.array(codes, dtype=np.int32)
