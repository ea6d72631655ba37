"""What is asked of the pipeline, and what it answers with.

Axes: N samples, K codes, L phonemes, T frames, F bins, V speaker vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.errors import UserError
from mlx_vits.synthesis.pauses import LONGEST_PAUSE
from mlx_vits.synthesis.sampling import Sampling
from mlx_vits.synthesis.watch import Fault

_SPEEDS = (0.25, 4.0)
_MOST_BATCH = 200


@dataclass(frozen=True)
class SpeechRequest:
    """What is to be said, and how; the names are upstream's.

    Attributes:
        text: of any length.
        text_lang: "en", "zh", "ja", "ko", "yue", "all_zh" and its like, "auto" or "auto_yue", see
            `text.segments`.
        prompt_text: what the reference says; "" for speech without a prompt.
        prompt_lang: its language.
        top_k, top_p, temperature, repetition_penalty: of sampling.
        text_split_method: "cut0" to "cut5".
        batch_size: sentences that T2S speaks at once.
        batch_threshold, split_bucket: see `batch_sentences`.
        return_fragment: whether each batch is given as soon as it is spoken.
        speed_factor: 2.0 halves the length.
        fragment_interval: seconds of silence after each sentence.
        seed: the same seed gives the same sound.
        parallel_infer: whether T2S takes a batch at once, which is faster.
        streaming_mode: whether chunks of a sentence are given while it is being spoken.
        fixed_length_chunk: whether chunks are cut at a fixed length, otherwise at pauses.
        min_chunk_length: codes of a chunk, at least; 25 are a second.
        overlap_length: codes that are decoded again for the join of two chunks, at most as many as
            `min_chunk_length`.
    """

    text: str
    text_lang: str
    prompt_text: str = ""
    prompt_lang: str = "en"
    top_k: int = Sampling.top_k
    top_p: float = Sampling.top_p
    temperature: float = Sampling.temperature
    repetition_penalty: float = Sampling.repetition_penalty
    text_split_method: str = "cut5"
    batch_size: int = 1
    batch_threshold: float = 0.75
    split_bucket: bool = True
    return_fragment: bool = False
    speed_factor: float = 1.0
    fragment_interval: float = 0.3
    seed: int = 0
    parallel_infer: bool = True
    streaming_mode: bool = False
    fixed_length_chunk: bool = False
    min_chunk_length: int = 16
    overlap_length: int = 2

    @property
    def sampling(self) -> Sampling:
        """Of T2S."""
        return Sampling(self.top_k, self.top_p, self.temperature, self.repetition_penalty)

    def with_prompt(self, text: str, language: str) -> SpeechRequest:
        """Return the same request with the prompt of a reference."""
        return replace(self, prompt_text=text, prompt_lang=language)

    def check(self) -> None:
        """Refuse options that have no meaning.

        Raises:
            UserError: naming the option and its range.
        """
        try:
            _ = self.sampling
        except ValueError as error:
            raise UserError(str(error)) from error
        for name in ("text", "text_lang", "prompt_text", "prompt_lang", "text_split_method"):
            _check_text(name, getattr(self, name))
        kind: Any
        for name, kind, least, most in (
            ("speed_factor", Real, *_SPEEDS),
            ("fragment_interval", Real, -math.inf, LONGEST_PAUSE),
            ("batch_size", Integral, 1, _MOST_BATCH),
            ("min_chunk_length", Integral, 1, 1000),
            ("overlap_length", Integral, 1, 100),
            ("seed", Integral, 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if not (isinstance(value, kind) and least <= value <= most):
                whole = "be a whole number and " if kind is Integral else ""
                span = f"between {least} and {most}" if math.isfinite(least) else f"below {most}"
                raise UserError(f"{_words(name)} is {value!r}; it has to {whole}lie {span}")
        if self.streaming_mode and self.batch_size > 1:
            raise UserError("streaming speaks one sentence at a time; leave batch_size at 1")


def _words(name: str) -> str:
    """Return what a field is called where it is an option, too."""
    return {
        "text_lang": "the language",
        "prompt_text": "the reference's text",
        "prompt_lang": "the reference's language",
        "text_split_method": "the way to split",
        "speed_factor": "the speed",
        "fragment_interval": "the pause",
        "min_chunk_length": "the length of a chunk",
        "overlap_length": "the overlap",
    }.get(name, name)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise UserError(f"{_words(name)} is {value!r:.40}; give it as a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # as Python reads other bytes from a command line
        raise UserError(
            f"{_words(name)} has characters that are not Unicode, at "
            f"{value[error.start :][:10]!r}; write it in UTF-8"
        ) from error


class Prompt(NamedTuple):
    """What T2S continues.

    Attributes:
        codes: `(K,)` of the reference, None for speech without a prompt.
        style: spectrograms `[1, F, T]` of the reference and of auxiliary ones, averaged as styles.
        vectors: speaker vector `[1, V]` of each, for v2Pro and v2ProPlus.
    """

    codes: np.ndarray | None
    style: list[mx.array]
    vectors: list[np.ndarray]


@dataclass
class Sentence:
    """One sentence and what became of it.

    Attributes:
        text: as it was cut from the text.
        phonemes: symbols.
        ids: of the phonemes.
        features: `[1024, L]` of BERT; None where nothing is Chinese.
        length: characters of the normalised text.
        lead, pause: seconds of silence before and after it.
        has_own_pause: whether the text asks for that pause.
        index: among the sentences of the text.
        codes: `(K,)` int32, semantic codes.
        samples: of its sound, without the silence after it.
        seed: that the codes were drawn with.
        retries: how often they were drawn again.
        fault: what still seems wrong with the codes.
        misheard: share of the words that a recogniser heard otherwise; None if none was asked.
    """

    text: str
    phonemes: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    features: mx.array | None = None
    length: int = 0
    lead: float = 0.0
    pause: float = 0.0
    has_own_pause: bool = False
    index: int = 0
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    samples: int = 0
    seed: int = 0
    retries: int = 0
    fault: Fault | None = None
    misheard: float | None = None


class Piece(NamedTuple):
    """Sound that is ready: `wav` `(N,)` float32, and the sentences that end in it."""

    wav: np.ndarray
    sentences: list[Sentence]
