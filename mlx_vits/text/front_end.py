"""From a text to speak to phonemes with features, which the T2S model reads.

The text is cut into segments of one language each, each is read by its own front end, and the
results are joined. Chinese has features from a BERT, one column a phoneme; other languages
beside it have zeros, and a text without Chinese has no features.

Source: GPT-SoVITS `TTS_infer_pack/TextPreprocessor.py` (`get_phones_and_bert`). Different here: a
segment in which nothing can be spoken keeps its marks and is reported; upstream reads it as a
space of English, or fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx

from mlx_vits.config import BERT_CHANNELS
from mlx_vits.errors import DataError, UserError
from mlx_vits.text.chinese_marks import MARKS, keep_marks, plain_characters
from mlx_vits.text.cleaner import CleanText, clean_text, resolve_language
from mlx_vits.text.lexicon import NO_WORDS, Lexicon
from mlx_vits.text.symbols import phonemes_to_ids

_WITH_FEATURES = "zh"
_FEWEST_PHONEMES = 6
_LEAD = "."  # put before a text of fewer phonemes, which the T2S model would cut short


class Segment(Protocol):
    """A piece of a text, and the code of its language."""

    @property
    def language(self) -> str: ...

    @property
    def text(self) -> str: ...


Segmenter = Callable[[str, str], Sequence[Segment]]
Cleaner = Callable[[str, str, str, Lexicon], CleanText]
CharactersToFeatures = Callable[[str], mx.array]


class Reading(NamedTuple):
    """A text made ready for the T2S model.

    phones: n symbols of the version.
    ids: their places among the version's symbols.
    norm_text: the text as it is read aloud.
    features: `[C, n]` float32, zero but for Chinese; None where nothing is Chinese.
    unspoken: what the text has and the phonemes do not say, in order, repeats included.
    guessed: English words that no dictionary has, in order, repeats included.
    """

    phones: list[str]
    ids: list[int]
    norm_text: str
    features: mx.array | None
    unspoken: tuple[str, ...]
    guessed: tuple[str, ...]


def read(
    text: str,
    language: str,
    version: str,
    *,
    segment: Segmenter,
    characters_to_features: CharactersToFeatures | None = None,
    lexicon: Lexicon = NO_WORDS,
    clean: Cleaner = clean_text,
    feature_width: int = BERT_CHANNELS,
) -> Reading:
    """Read a text.

    Args:
        text: one sentence, or a few.
        language: a code of `cleaner.supported_languages(version)`, in either case.
        version: of the model that is to speak.
        segment: cuts a text of a language code into segments.
        characters_to_features: a normalised Chinese text of N characters to `(N, C)`; None where
            there is no BERT, which only a text with Chinese needs.
        lexicon: the user's own pronunciations.
        clean: reads one segment: its text, language, version and the lexicon.
        feature_width: C.

    Raises:
        DataError: nothing in the text can be spoken, or the version lacks the language.
        UserError: a language needs packages that are not installed, or Chinese lacks its BERT.
    """
    code = resolve_language(language, version)
    text = re.sub(" {2,}", " ", text)
    if not any(map(str.isalnum, text)):
        raise DataError(f"The text {text.strip()[:40]!r} has nothing that can be spoken.")

    def read_once(written: str) -> Reading:
        parts = _clean_segments(segment(written, code), version, lexicon, clean)
        if written is not text:
            _keep_lead(parts)
        phones = [phone for part in parts for phone in part.cleaned.phonemes]
        return Reading(
            phones=phones,
            ids=phonemes_to_ids(phones, version),
            norm_text="".join(part.cleaned.normalized for part in parts),
            features=_features(parts, version, characters_to_features, feature_width),
            unspoken=tuple(sign for part in parts for sign in part.cleaned.unknown),
            guessed=tuple(word for part in parts for word in part.cleaned.guessed),
        )

    reading = read_once(text)
    if len(reading.phones) < _FEWEST_PHONEMES:
        reading = read_once(_LEAD + text)
    return reading


class _Part(NamedTuple):
    language: str
    cleaned: CleanText


def _clean_segments(
    segments: Sequence[Segment], version: str, lexicon: Lexicon, clean: Cleaner
) -> list[_Part]:
    """Read every segment; one that cannot be spoken keeps its marks, if another can be.

    Raises:
        DataError: none can be spoken.
    """
    parts = []
    failure: DataError | None = None
    is_spoken = False
    for part in segments:
        try:
            parts.append(_Part(part.language, clean(part.text, part.language, version, lexicon)))
            is_spoken = True
        except DataError as error:
            failure = error
            parts.append(_Part("", _marks_alone(part.text)))
    if not is_spoken:
        raise failure or DataError("The text has nothing that can be spoken.")
    return parts


def _marks_alone(text: str) -> CleanText:
    """Read the marks of a text alone; everything else that has a sound is unknown."""
    marked = keep_marks(plain_characters(text))
    marks = [c for c in marked.text if c in MARKS]
    unread = [c for c in marked.text if c not in MARKS]
    return CleanText(marks, None, "".join(marks), (*unread, *marked.unknown))


def _keep_lead(parts: list[_Part]) -> None:
    """Put back the lead where a front end drops a mark at the start, as the English one does."""
    first = parts[0].cleaned
    if first.normalized[:1] not in MARKS:
        parts[0] = parts[0]._replace(
            cleaned=first._replace(
                phonemes=[_LEAD, *first.phonemes],
                word2ph=None if first.word2ph is None else [1, *first.word2ph],
                normalized=_LEAD + first.normalized,
            )
        )


def _features(
    parts: Sequence[_Part],
    version: str,
    characters_to_features: CharactersToFeatures | None,
    width: int,
) -> mx.array | None:
    """Return the features of a text's phonemes, `[C, n]`; None where no segment has any."""
    if all(part.language != _WITH_FEATURES for part in parts):
        return None
    each = [_phoneme_features(part, version, characters_to_features, width) for part in parts]
    features = mx.concatenate(each).T
    mx.eval(features)  # another thread may use them
    return features


def _phoneme_features(
    part: _Part, version: str, characters_to_features: CharactersToFeatures | None, width: int
) -> mx.array:
    """Return the features of a segment's phonemes, `(n, C)`: those of their character."""
    count = len(part.cleaned.phonemes)
    if part.language != _WITH_FEATURES:
        return mx.zeros((count, width))
    if characters_to_features is None:
        raise UserError(
            "Chinese is read with chinese-roberta-wwm-ext-large, which is not there; fetch it with "
            f"`mlx-vits download {version}`"
        )
    text, word2ph = part.cleaned.normalized, part.cleaned.word2ph or []
    if len(word2ph) != len(text) or sum(word2ph) != count:
        raise AssertionError(f"{len(word2ph)} counts for {len(text)} characters, {count} phonemes")
    return spread_features(characters_to_features(text), word2ph)


def spread_features(features: mx.array, word2ph: Sequence[int]) -> mx.array:
    """Features of characters to those of their phonemes: each as often as it has phonemes.

    Args:
        features: `(N, C)`.
        word2ph: N counts.

    Returns:
        `(n, C)` float32, n the sum of the counts.
    """
    owners = [i for i, times in enumerate(word2ph) for _ in range(times)]
    return features[mx.array(owners)].astype(mx.float32)
