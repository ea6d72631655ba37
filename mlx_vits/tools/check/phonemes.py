"""Which phonemes a voice's clips hold, and how fast they are spoken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mlx_vits.errors import DataError
from mlx_vits.text.cleaner import UNKNOWN
from mlx_vits.text.english import phonemize
from mlx_vits.text.symbols import symbols_for
from mlx_vits.tools.check.facts import ClipFacts, PhonemeFacts, RateFacts, Spread
from mlx_vits.tools.check.outliers import far_from_median

ENGLISH = "en"
# ARPAbet without stress, vowels first: all that the CMU dictionary uses.
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
ARPABET = (*_VOWELS.split(), *_CONSONANTS.split())
_RARE = 2
_STRESS = "012"
# GPT-SoVITS's GPT stage drops a clip spoken outside of these phonemes a second.
SLOWEST, FASTEST = 3.0, 25.0
# Of 2132 clips of 18 voices with their own transcripts 11 are named, all of them short and with a
# pause. Where a tenth of a voice's transcripts was exchanged, 30 % of the wrong ones are; the rest
# fit as well as the right ones.
_RATE_FACTOR = 1.4
# Of 7200 draws of 12 clips with their own transcripts, phonemes and seconds correlate at 0.55 or
# more in all; of shuffled ones 95 % are below this. Whole voices have 0.92 to 0.99.
LEAST_CORRELATION = 0.5
_FEWEST_TO_CORRELATE = 12
_LEAST_VARIATION = 0.1  # of lengths: standard deviation over mean; the voices have 0.13 and more


def is_english(symbols: Sequence[str]) -> bool:
    """Return whether most of a line's phonemes are ARPAbet, which no other language here uses."""
    letters = [symbol for symbol in symbols if symbol[:1].isalpha() and symbol != UNKNOWN]
    known = sum(merge_stress(symbol) in ARPABET for symbol in letters)
    return known * 2 > len(letters)


def merge_stress(symbol: str) -> str:
    """Return an ARPAbet vowel without its digit; other symbols stay as they are."""
    bare = symbol.rstrip(_STRESS)
    return bare if bare in ARPABET else symbol


def guessed_words(text: str) -> tuple[str, ...]:
    """Return the words of an English text that neither dictionary nor rules can pronounce."""
    try:
        return tuple(phonemize(text).unknown)
    except DataError:
        return ()


def summarize_phonemes(
    counts: Counter[str], clips: Sequence[ClipFacts], version: str
) -> PhonemeFacts:
    """Count the phonemes of the clips to train on.

    Args:
        counts: of every symbol.
        clips: those that they come from.
        version: whose symbols they are.
    """
    merged: Counter[str] = Counter()
    for symbol, count in counts.items():
        merged[merge_stress(symbol)] += count
    has_english = any(clip.language == ENGLISH for clip in clips)
    inventory = ARPABET if has_english else ()
    guessed = Counter(word for clip in clips for word in clip.guessed)
    unspoken = Counter(part for clip in clips for part in clip.unspoken)
    return PhonemeFacts(
        total=counts.total(),
        symbols=len(counts),
        version_symbols=len(symbols_for(version)),
        inventory=len(inventory) if has_english else None,
        missing=tuple(p for p in inventory if not merged[p]),
        rare=tuple(p for p in inventory if 0 < merged[p] <= _RARE),
        unknown=counts[UNKNOWN],
        unknown_in=tuple(clip.name for clip in clips if clip.unknown),
        guessed=dict(guessed.most_common()),
        unspoken=dict(unspoken.most_common()),
    )


def summarize_rates(clips: Sequence[ClipFacts]) -> dict[str, RateFacts]:
    """Return how fast clips are spoken, for each language by itself."""
    spoken = [clip for clip in clips if clip.seconds and clip.phonemes]
    return {
        language: _rates([clip for clip in spoken if clip.language == language])
        for language in sorted({clip.language for clip in spoken})
    }


def _rates(clips: list[ClipFacts]) -> RateFacts:
    rates = [clip.phonemes_per_second for clip in clips]
    far = far_from_median(rates, factor=_RATE_FACTOR)
    return RateFacts(
        clips=len(clips),
        phonemes=Spread.of(rates),
        characters=Spread.of([len(clip.text) / clip.seconds for clip in clips]),
        correlation=_correlation(clips),
        outliers=tuple(clip.name for clip, is_far in zip(clips, far, strict=True) if is_far),
        outside=tuple(
            clip.name for clip in clips if not SLOWEST <= clip.phonemes_per_second <= FASTEST
        ),
    )


def _correlation(clips: list[ClipFacts]) -> float | None:
    if len(clips) < _FEWEST_TO_CORRELATE:
        return None
    seconds = np.array([clip.seconds for clip in clips])
    phonemes = np.array([clip.phonemes for clip in clips])
    if seconds.std() < _LEAST_VARIATION * seconds.mean() or not phonemes.std():
        return None
    return float(np.corrcoef(seconds, phonemes)[0, 1])
