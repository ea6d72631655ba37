"""Korean pronunciation rules: spelling to sound, syllable by syllable.

The rules are the Standard Pronunciation (표준 발음법, Ministry of Culture 2017-13; article numbers
are in the code), applied like upstream's package `g2pk2`: across a space consonants assimilate but
do not link. That package downloads an English dictionary on import, and has been unmaintained since
2023. Where its rules deviate from the Standard (늦어 느서, 밟아 바바), its result is kept; errors
of its table for clusters before ㅋ, ㅌ and ㅎ (흙탕물 as 흑팡물) are not.
"""

from __future__ import annotations

from dataclasses import dataclass

_ONSETS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_CODAS = ["", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"]
SILENT = "ㅇ"  # as an onset

# Codas neutralised before a consonant or at the end (articles 9 to 11).
_CLOSED = {
    **dict.fromkeys("ㄲㅋㄳㄺ", "ㄱ"),
    **dict.fromkeys("ㅅㅆㅈㅊㅌㅎ", "ㄷ"),
    **dict.fromkeys("ㅍㅄㄿ", "ㅂ"),
    **{"ㄵ": "ㄴ", "ㄶ": "ㄴ", "ㄼ": "ㄹ", "ㄽ": "ㄹ", "ㄾ": "ㄹ", "ㅀ": "ㄹ", "ㄻ": "ㅁ"},
}
# A coda before a vowel: what stays, what links over (articles 13, 14; 12.4 for ㅎ).
_LINKED = {
    **{"ㄳ": ("ㄱ", "ㅆ"), "ㄵ": ("ㄴ", "ㅈ"), "ㄺ": ("ㄹ", "ㄱ"), "ㄻ": ("ㄹ", "ㅁ")},
    **{
        "ㄼ": ("ㄹ", "ㅂ"),
        "ㄽ": ("ㄹ", "ㅆ"),
        "ㄾ": ("ㄹ", "ㅌ"),
        "ㄿ": ("ㄹ", "ㅍ"),
        "ㅄ": ("ㅂ", "ㅆ"),
    },
    **{"ㅎ": ("", SILENT), "ㄶ": ("", "ㄴ"), "ㅀ": ("", "ㄹ"), "ㅇ": ("ㅇ", SILENT)},
}
# The same after ㅡ, for the names of letters (디귿이 디그시, article 16). `g2pk2` applies it to
# every word, against the Standard (늦어), and models were trained on its results.
_LINKED_AS_LETTER_NAME = {**dict.fromkeys("ㄷㅈㅊㅌㅎ", "ㅅ"), "ㅋ": "ㄱ", "ㅍ": "ㅂ"}
_PALATAL = {"ㄷ": ("", "ㅈ"), "ㅌ": ("", "ㅊ"), "ㄾ": ("ㄹ", "ㅊ")}  # before ㅣ (article 17)
_ASPIRATED = {"ㄱ": "ㅋ", "ㄷ": "ㅌ", "ㅂ": "ㅍ", "ㅈ": "ㅊ"}
_TENSE = {"ㄱ": "ㄲ", "ㄷ": "ㄸ", "ㅂ": "ㅃ", "ㅅ": "ㅆ", "ㅈ": "ㅉ"}
_NASAL = {"ㄱ": "ㅇ", "ㄷ": "ㄴ", "ㅂ": "ㅁ"}
# A coda before ㅎ (article 12.1): what stays, what replaces the ㅎ.
_BEFORE_H = {
    **{"ㄱ": ("", "ㅋ"), "ㄲ": ("", "ㅋ"), "ㄳ": ("", "ㅋ"), "ㅋ": ("", "ㅋ"), "ㄺ": ("ㄹ", "ㅋ")},
    **{
        "ㄷ": ("", "ㅌ"),
        "ㅂ": ("", "ㅍ"),
        "ㅍ": ("", "ㅍ"),
        "ㄼ": ("ㄹ", "ㅍ"),
        "ㄿ": ("ㅂ", "ㅍ"),
    },
    **{"ㅄ": ("", "ㅍ"), "ㅈ": ("", "ㅊ"), "ㄵ": ("ㄴ", "ㅊ"), "ㅎ": ("", "ㅎ")},
    **dict.fromkeys("ㅅㅆㅊㅌ", ("", "ㅌ")),
}
# Endings that begin tense even without a preceding space (article 27).
_TENSE_ENDINGS = ("걸", "밖에", "세라", "수록", "지라도", "지언정", "진대")
_MAX_ENDING_CHARS = max(map(len, _TENSE_ENDINGS))


@dataclass
class Syllable:
    """A Hangul syllable, or any other character.

    Attributes:
        onset, vowel, coda: compatibility jamo; the onset "ㅇ" is silent, the coda may be "".
        other: the character if it is not a syllable; the rest is empty then.
        is_stem: whether it ends the stem of a verb or an adjective.
        is_modifier: whether it ends a verb's modifier form in -ㄹ.
    """

    onset: str = ""
    vowel: str = ""
    coda: str = ""
    other: str = ""
    is_stem: bool = False
    is_modifier: bool = False


def split_syllable(character: str) -> Syllable:
    """Split a character into jamo, by Unicode's composition of Hangul."""
    index = ord(character) - 0xAC00
    if not 0 <= index < 11172:
        return Syllable(other=character)
    return Syllable(_ONSETS[index // 588], _VOWELS[index // 28 % 21], _CODAS[index % 28])


def pronounce(syllables: list[Syllable]) -> None:
    """Change syllables in place from spelling to sound."""
    text = "".join(_written(s) for s in syllables)
    for syllable in syllables:
        _change_vowel(syllable)
    for i, syllable in enumerate(syllables):
        spaced = i + 1 < len(syllables) and syllables[i + 1].other == " "
        at = i + 1 + spaced
        after = syllables[at] if at < len(syllables) else None
        if after is None or not after.onset:
            after = None
        if syllable.coda:
            _meet(syllable, after, spaced, text[i + 1 : i + 1 + _MAX_ENDING_CHARS])


def _written(syllable: Syllable) -> str:
    if syllable.other:
        return syllable.other
    onset, vowel = _ONSETS.index(syllable.onset), _VOWELS.index(syllable.vowel)
    return chr(0xAC00 + onset * 588 + vowel * 28 + _CODAS.index(syllable.coda))


def _change_vowel(syllable: Syllable) -> None:
    if syllable.onset in ("ㅈ", "ㅉ", "ㅊ") and syllable.vowel == "ㅕ":  # article 5.1
        syllable.vowel = "ㅓ"
    if syllable.vowel == "ㅢ" and syllable.onset not in (SILENT, ""):  # article 5.3
        syllable.vowel = "ㅣ"


def _meet(left: Syllable, right: Syllable | None, spaced: bool, text: str) -> None:
    """Apply the rules to a coda and the onset that follows it, in place.

    Args:
        left: the syllable with the coda.
        right: the next syllable, None if there is none.
        spaced: whether a space is between them.
        text: the few syllables after `left`, as written.
    """
    if right is None:
        left.coda = _closed(left, None)
    elif right.onset == SILENT:
        if spaced:
            left.coda = _closed(left, None)
        else:
            _link(left, right)
    elif right.onset == "ㅎ" and left.coda in _BEFORE_H:
        _join_h(left, right, spaced)
    elif left.coda in "ㅎㄶㅀ":
        _drop_h(left, right)
    else:
        _make_tense(left, right, spaced, text)
        left.coda = _closed(left, right)
        _assimilate(left, right, spaced)


def _link(left: Syllable, right: Syllable) -> None:
    """Link a coda over to a syllable without an onset."""
    if left.vowel == "ㅡ" and left.coda in _LINKED_AS_LETTER_NAME:
        left.coda, right.onset = "", _LINKED_AS_LETTER_NAME[left.coda]
        return
    if left.coda == "ㄼ" and left.is_stem and _is_balb(left):  # 밟아, as g2pk2
        left.coda = "ㅂ"
    links = _PALATAL if right.vowel in "ㅣㅕ" and left.coda in _PALATAL else _LINKED
    left.coda, right.onset = links.get(left.coda, ("", left.coda))


def _join_h(left: Syllable, right: Syllable, spaced: bool) -> None:
    if left.coda == "ㄷ" and right.vowel == "ㅣ" and not spaced:  # 닫히다, article 17
        left.coda, right.onset = "", "ㅊ"
    else:
        left.coda, right.onset = _BEFORE_H[left.coda]


def _drop_h(left: Syllable, right: Syllable) -> None:
    """Change ㅎ, ㄶ, ㅀ before a consonant (article 12)."""
    coda, onset = {"ㅎ": "", "ㄶ": "ㄴ", "ㅀ": "ㄹ"}[left.coda], right.onset
    if onset == "ㄴ":
        coda, onset = {"": ("ㄴ", "ㄴ"), "ㄴ": ("ㄴ", "ㄴ"), "ㄹ": ("ㄹ", "ㄹ")}[coda]
    elif onset == "ㄹ" and coda:
        coda = "ㄹ"
    elif onset == "ㅅ":
        onset = "ㅆ"
    elif onset in "ㄱㄷㅈ":
        onset = _ASPIRATED[onset]
    left.coda, right.onset = coda, onset


def _make_tense(left: Syllable, right: Syllable, spaced: bool, text: str) -> None:
    if right.onset not in _TENSE:
        return
    after_stop = _CLOSED.get(left.coda, left.coda) in _NASAL or left.coda in ("ㄼ", "ㄽ")  # 23
    after_stem = (
        left.is_stem and not spaced and right.onset != "ㅂ" and left.coda in "ㄴㅁㄵㄻㄼㄾ"
    )  # articles 24, 25
    after_modifier = left.coda == "ㄹ" and (
        (left.is_modifier and spaced) or (not spaced and text.startswith(_TENSE_ENDINGS))
    )  # article 27
    if after_stop or after_stem or after_modifier:
        right.onset = _TENSE[right.onset]


def _closed(left: Syllable, right: Syllable | None) -> str:
    coda = left.coda
    if coda == "ㄼ" and _is_balb(left):  # 밟다, article 10.1
        return "ㅂ"
    if coda == "ㄼ" and right and right.onset in "ㄴㅁ":
        return "ㅂ"  # as g2pk2; becomes a nasal
    if coda == "ㄼ" and (left.onset, left.vowel) == ("ㄴ", "ㅓ") and right:  # 넓죽하다, 넓둥글다
        return "ㅂ" if right.onset in "ㅈㅉㄷㄸ" and right.vowel == "ㅜ" else "ㄹ"
    if coda == "ㄺ" and left.is_stem and right and right.onset in "ㄱㄲ":  # 맑게, article 11.1
        return "ㄹ"
    return _CLOSED.get(coda, coda)


def _is_balb(syllable: Syllable) -> bool:
    return syllable.vowel == "ㅏ" and syllable.onset in "ㅂㅃ"  # also tense, as in 짓밟다


def _assimilate(left: Syllable, right: Syllable, spaced: bool) -> None:
    """Assimilate nasals and ㄹ (articles 18 to 20)."""
    coda, onset = left.coda, right.onset
    if onset == "ㄹ":
        if coda in ("ㅁ", "ㅇ"):
            onset = "ㄴ"
        elif coda in _NASAL:
            coda, onset = _NASAL[coda], "ㄴ"
        elif coda == "ㄴ":
            coda = "ㄹ"
    elif onset in "ㄴㅁ" and coda in _NASAL:
        coda = _NASAL[coda]
    elif onset == "ㄴ" and coda == "ㄹ":
        onset = "ㄹ"
    if spaced and coda == onset == "ㄹ" and left.vowel == "ㅡ" and left.onset in (SILENT, "ㄹ"):
        onset = "ㄴ"  # 을, 를: upstream's fix of g2pk2, which also affects a written ㄹ
    left.coda, right.onset = coda, onset
