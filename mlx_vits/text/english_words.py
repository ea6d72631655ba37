"""Pronounce an English word: CMU dictionary, then rules, then letter-to-sound prediction.

A word outside the dictionary is decomposed as upstream does (hyphens, possessives, spelling of
words of up to three letters) or at its ending; the rest goes to the letter-to-sound network, where
upstream has a recurrent one.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from mlx_vits.text.data_files import read_data
from mlx_vits.text.english_heteronyms import heteronym, listed
from mlx_vits.text.letter_to_sound import english_letter_to_sound
from mlx_vits.text.lexicon import NO_WORDS, Lexicon


class Pronunciation(NamedTuple):
    """ARPAbet phonemes of a word; `guessed` if neither dictionary nor rules cover it."""

    phonemes: list[str]
    guessed: bool = False


# Words newer than the dictionary; upstream's own list has the first two.
_ADDED = {
    "chatgpt": "CH AE1 T JH IY1 P IY1 T IY1",
    "json": "JH EY1 S AH0 N",
    "covid": "K OW1 V IH0 D",
    "jpeg": "JH EY1 P EH2 G",
    "gif": "G IH1 F",
    # Sounds, and dialect without its apostrophe.
    "mm": "M",
    "grr": "G ER1",
    "brr": "B ER1",
    "pfft": "P F T",
    "psst": "P S T",
    "tsk": "T S K",
    "ol": "OW1 L",
}
_PREFIXES = {
    "co": "K OW1",
    "de": "D IY1",
    "pre": "P R IY1",
    "re": "R IY1",
}
# Entries that upstream removes, so that these are spelled out.
_REMOVED = ("ae", "ai", "ar", "ios", "hud", "os")
_ENCLITICS = {
    "'d": ["D"],
    "'ll": ["AH0", "L"],
    "'m": ["M"],
    "'re": ["ER0"],
    "'ve": ["AH0", "V"],
    "n't": ["AH0", "N", "T"],
}
_VOICELESS = frozenset(["P", "T", "K", "F", "TH"])
_SIBILANT = frozenset(["S", "Z", "SH", "ZH", "CH", "JH"])
_VOICELESS_PAST = _VOICELESS | {"S", "SH", "CH"}
_LONGEST_SPELLED = 3  # letters; upstream spells out unknown words up to this length
_SYLLABLE = re.compile("[bcdfghjklmnpqrstvwxz][aeiou][bcdfghjklmnpqrstvwxz]")  # which is said
_STRETCHED = re.compile(r"([a-z])\1\1+")


@cache
def dictionary() -> dict[str, str]:
    """Return the pronunciation of each word (lower case).

    It is the CMU dictionary's first, but upstream's where its older edition of the dictionary has
    another, which is what the pretrained models have learnt.
    """
    entries = {}
    for line in lzma.decompress(read_data("cmudict.dict.xz")).decode("utf-8").splitlines():
        word, _, phones = line.partition(" ")
        if word[-1] != ")":  # "word(2)" is a second pronunciation
            entries[word] = phones.partition(" #")[0]
    for line in read_data("english_upstream.txt").decode("utf-8").splitlines():
        word, _, entries[word] = line.partition(" ")
    entries.update(_ADDED)
    for word in _REMOVED:
        entries.pop(word, None)
    return entries


def is_known(word: str) -> bool:
    """Whether the dictionary has a word, in any case."""
    return word.lower() in dictionary()


def is_dialect(word: str) -> bool:
    """Whether a word is a participle without its "g", "singin'"."""
    return word.endswith("in'") and is_known(word[:-1] + "g")


@lru_cache(maxsize=4096)
def is_spelled(word: str) -> bool:
    """Whether the dictionary has a word, and it is its letters, as "fbi"."""
    if not is_known(word):
        return False
    names = [phoneme.rstrip("012") for phoneme in spell(word).phonemes]
    return [phoneme.rstrip("012") for phoneme in dictionary()[word.lower()].split()] == names


def pronounce_in(text: Sequence[str], index: int, lexicon: Lexicon = NO_WORDS) -> Pronunciation:
    """Return the phonemes of a word in its sentence, which resolves heteronyms.

    Args:
        text: words and marks of the sentence.
        index: of the word.
        lexicon: overrides the dictionary, also for the parts of a word.
    """
    word = text[index]
    is_plain = word.lower() not in listed() and "-" not in word
    if is_plain or lexicon.get(word, "en"):
        return pronounce(word, lexicon)
    if spoken := heteronym(text, index):
        return Pronunciation(spoken.split())
    first, hyphen, last = word.rpartition("-")
    if hyphen and not is_known(word):
        apart = [*text[:index], last, *text[index + 1 :]]
        return _join(_first_parts(first, lexicon), pronounce_in(apart, index, lexicon))
    return pronounce(word, lexicon)


def _first_parts(hyphenated: str, lexicon: Lexicon) -> Pronunciation:
    """What stands before the last hyphen of a compound, "re" in "re-read"."""
    parts = (part.lower() for part in hyphenated.split("-") if part)
    return _join(
        *(
            Pronunciation(_PREFIXES[part].split())
            if part in _PREFIXES
            else pronounce(part, lexicon)
            for part in parts
        )
    )


@lru_cache(maxsize=4096)
def pronounce(word: str, lexicon: Lexicon = NO_WORDS) -> Pronunciation:
    """Return the phonemes of one word, with stress digits.

    Args:
        word: letters, with inner apostrophes and hyphens, or a leading apostrophe.
        lexicon: overrides the dictionary, also for the parts of a word.
    """
    if own := lexicon.get(word, "en"):
        return Pronunciation(list(own))
    if word == "A":  # upstream's rule: a capital A is the letter, also as the article
        return Pronunciation(["EY1"])
    lower = word.lower()
    known = None if is_dialect(lower) else dictionary().get(lower)
    return Pronunciation(known.split()) if known else _take_apart(lower, lexicon)


def _take_apart(word: str, lexicon: Lexicon) -> Pronunciation:
    if "-" in word:
        return _first_parts(word, lexicon)
    if is_dialect(word):
        return Pronunciation([*dictionary()[word[:-1] + "g"].split()[:-1], "N"])
    if "'" in word:
        return _at_apostrophe(word, lexicon)
    if (shorter := _unstretched(word)) != word:
        return pronounce(shorter, lexicon)
    if len(word) <= _LONGEST_SPELLED and not _SYLLABLE.fullmatch(word):
        return spell(word)
    return _with_ending(word) or _guess(word)


def _unstretched(word: str) -> str:
    """A word without the letters that are written more often than it has them, "nooo".

    At the end of a word one is the likelier number that the dictionary has, elsewhere two.
    """
    if not _STRETCHED.search(word):
        return word
    ends = bool(re.search(r"(.)\1\1$", word))
    once, twice = (_STRETCHED.sub(r"\1" * times, word) for times in (1, 2))
    order = (once, twice) if ends and len(once) > 1 else (twice, once)
    return next((shorter for shorter in order if is_known(shorter)), once)


def _join(*parts: Pronunciation) -> Pronunciation:
    phonemes = [phoneme for part in parts for phoneme in part.phonemes]
    return Pronunciation(phonemes, any(part.guessed for part in parts))


def spell(word: str) -> Pronunciation:
    """Return the names of a word's letters."""
    names = (["EY1"] if c == "a" else dictionary()[c].split() for c in word.lower())
    return Pronunciation([phoneme for name in names for phoneme in name])


def _at_apostrophe(word: str, lexicon: Lexicon) -> Pronunciation:
    if word.endswith("'s") and len(word) > 2:
        owner = pronounce(word[:-2], lexicon)
        return _join(owner, Pronunciation(_plural(owner.phonemes)))
    for enclitic, phonemes in _ENCLITICS.items():
        if word.endswith(enclitic) and len(word) > len(enclitic):
            return _join(pronounce(word[: -len(enclitic)], lexicon), Pronunciation(phonemes))
    return pronounce(word.replace("'", ""), lexicon)


def _plural(stem: list[str]) -> list[str]:
    last = stem[-1] if stem else ""
    return ["IH0", "Z"] if last in _SIBILANT else ["S"] if last in _VOICELESS else ["Z"]


def _past(stem: list[str]) -> list[str]:
    last = stem[-1]
    return ["IH0", "D"] if last in ("T", "D") else ["T"] if last in _VOICELESS_PAST else ["D"]


def _with_ending(word: str) -> Pronunciation | None:
    """Return the plural, the past tense or the "singin'" of a dictionary word.

    For other endings, prefixes and compounds the network, which sees the whole word, is right more
    often on held-out words (compounds of two known words: 61 % against 30 %).
    """
    if word.endswith("in") and (whole := dictionary().get(word + "g")):
        return Pronunciation([*whole.split()[:-1], "N"])
    for ending, restored, sound in _ENDINGS:
        stem = word.removesuffix(ending) + restored
        if word.endswith(ending) and len(stem) > 2 and stem in dictionary():
            phonemes = dictionary()[stem].split()
            return Pronunciation(phonemes + sound(phonemes))
    return None


def _guess(word: str) -> Pronunciation:
    return Pronunciation(english_letter_to_sound().pronounce(word), guessed=True)


_ENDINGS = (
    ("s", "", _plural),
    ("es", "", _plural),
    ("ies", "y", _plural),
    ("ied", "y", _past),
    ("ed", "", _past),
    ("ed", "e", _past),
)
