"""Which clip of a voice its speech is to continue."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_vits.preprocessing.choosing import Candidate, choose_reference, measure_candidate
from tests.support.tiny import hum

RATE = 32000
PAUSE = np.zeros(RATE // 4, np.float32)


def candidate(
    name: str = "good",
    *,
    text: str = "Words that end.",
    seconds: float = 5.0,
    phonemes: int = 50,
    loudness: float = 1.0,
    noise: float = 0.0,
    pauses: bool = True,
) -> Candidate:
    """Two phrases, each with a pause after it unless `pauses` is false."""
    pause = PAUSE if pauses else PAUSE[:0]
    phrase = hum(seconds / 2 - len(pause) / RATE)
    wav = loudness * np.concatenate([phrase, pause, phrase, pause])
    wav = wav + noise * np.random.default_rng(0).standard_normal(len(wav)).astype(np.float32)
    return measure_candidate(name, text, "en", phonemes, wav, RATE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": 9.8, "phonemes": 98}, "9.8 s"),
        ({"seconds": 3.1, "phonemes": 31}, "3.1 s"),
        ({"pauses": False}, "does not end in a pause"),
        ({"phonemes": 75}, "pace"),
        ({"phonemes": 30}, "pace"),
        ({"loudness": 0.3}, "level"),
        ({"noise": 0.02}, "noisy"),
        ({"text": "Words that do not"}, "does not end a sentence"),
        ({"text": "Words, and then,"}, "does not end a sentence"),
    ],
)
def test_a_flawed_clip_is_taken_only_where_there_is_no_better_one(
    changes: dict, words: str
) -> None:
    flawed = candidate("flawed", **changes)
    # The voice's usual level and pace come from clips too short to be chosen.
    usual = [candidate("short", seconds=2.0, phonemes=20)] * 3
    chosen = choose_reference([flawed, candidate(), *usual])
    assert chosen is not None
    assert (chosen.candidate.name, chosen.flaws) == ("good", [])
    left = choose_reference([flawed, *usual])
    assert left is not None
    assert left.candidate.name == "flawed"
    assert any(words in flaw for flaw in left.flaws)


def test_no_clip_of_3_to_10_seconds() -> None:
    assert choose_reference([candidate(seconds=2.5), candidate(seconds=11.0)]) is None
    assert choose_reference([]) is None
