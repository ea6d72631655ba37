"""Notice when T2S has left words out, repeated itself, or did not end.

Codes come at 25 a second. Upstream trains T2S on sentences of 3 to 25 phonemes a second alone, so
speech outside of that is outside of what it has learnt. Of the 14,558 sentences of the demo's
corpus, read by some 3,000 voices, three are found at fault, all for being slow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CODES_PER_SECOND = 25
PHONEMES_PER_SECOND = (3, 25)  # upstream's limits for training
_SLOWEST, _FASTEST = (CODES_PER_SECOND / rate for rate in PHONEMES_PER_SECOND)  # codes a phoneme
_LEAST_SHARE, _LARGEST_SHARE = 0.6, 2.0  # of the reference's own codes a phoneme
_FIRST_PHONEMES = 12  # a shorter sentence may be mostly its pauses
_ROUNDS = 3  # of a phrase
_LONGEST_PHRASE = 100  # codes
_SHORTEST_PHRASE = 12  # codes: a shorter round is a tone or a pause
_LONGEST_TONE = 50  # codes of such rounds, 2 s


class Fault(NamedTuple):
    """What seems wrong with a sentence.

    Attributes:
        kind: "omitted", "repeated" or "endless".
        words: what follows the sentence in a warning.
    """

    kind: str
    words: str


def find_fault(
    codes: np.ndarray, phonemes: int, *, has_ended: bool = True, pace: float | None = None
) -> Fault | None:
    """Judge the codes of one sentence.

    Args:
        codes: `(K,)`, without the prompt's.
        phonemes: of the sentence.
        has_ended: False where the cap on the number of codes was reached.
        pace: codes a phoneme of the reference, None where its text is not known.

    Returns:
        The first fault found, or None.
    """
    if not has_ended:
        return Fault("endless", f"did not end within {len(codes) / CODES_PER_SECOND:.0f} s")
    if (period := find_loop(codes)) is not None:
        if period < _SHORTEST_PHRASE:
            return Fault("repeated", f"holds a sound for {_LONGEST_TONE / CODES_PER_SECOND:.0f} s")
        return Fault("repeated", f"repeats {period / CODES_PER_SECOND:.1f} s of itself")
    if phonemes < _FIRST_PHONEMES:
        return None
    least, most = _FASTEST, _SLOWEST
    if pace is not None:
        least, most = max(least, _LEAST_SHARE * pace), min(most, _LARGEST_SHARE * pace)
    seconds = f"{len(codes) / CODES_PER_SECOND:.1f} s for {phonemes} phonemes"
    if len(codes) < least * phonemes:
        return Fault("omitted", f"is too short, {seconds}: words may be missing")
    if len(codes) > most * phonemes:
        return Fault("endless", f"is too long, {seconds}")
    return None


def find_loop(codes: np.ndarray) -> int | None:
    """Return the period, in codes, of a phrase said several times in a row or a held tone."""
    for period in range(1, min(_LONGEST_PHRASE, len(codes) // _ROUNDS) + 1):
        least = _LONGEST_TONE if period < _SHORTEST_PHRASE else (_ROUNDS - 1) * period
        if _longest_run(codes[period:] == codes[:-period]) >= least:
            return period
    return None


def _longest_run(is_equal: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_equal.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
