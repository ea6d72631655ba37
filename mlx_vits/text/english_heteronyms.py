"""English heteronyms: words with one spelling and two pronunciations.

Upstream uses a part-of-speech tagger; here the preceding word decides, else the commoner reading.
Words whose first dictionary entry is nearly always right are omitted.
"""

from __future__ import annotations

from typing import NamedTuple


class Heteronym(NamedTuple):
    """Phonemes: `verb` after a verb cue, `other` after a noun cue, else `default`."""

    verb: str
    other: str
    default: str


def _cues(words: str) -> frozenset[str]:
    return frozenset(words.split())


_VERB_CUES = _cues(
    "to will would can could shall should may might must cannot i you we they who let's "
    "don't doesn't didn't can't won't couldn't wouldn't shouldn't i'll you'll we'll they'll"
)
_OTHER_CUES = _cues(
    "a an the this that these those my your his her its our their no some any every each of in on "
    "by for with from at"
)
_PERFECT_CUES = _cues(
    "have has had having be been being was were is are am i've you've we've they've he'd she'd"
)


def _verb(verb: str, other: str) -> Heteronym:
    return Heteronym(verb, other, verb)


def _other(verb: str, other: str) -> Heteronym:
    return Heteronym(verb, other, other)


_WORDS = {
    "bass": _other("B EY1 S", "B EY1 S"),
    "close": _other("K L OW1 Z", "K L OW1 S"),
    "conduct": _other("K AH0 N D AH1 K T", "K AA1 N D AH0 K T"),
    "conflict": _other("K AH0 N F L IH1 K T", "K AA1 N F L IH0 K T"),
    "content": _other("K AH0 N T EH1 N T", "K AA1 N T EH0 N T"),
    "contract": _other("K AH0 N T R AE1 K T", "K AA1 N T R AE2 K T"),
    "contrast": _other("K AH0 N T R AE1 S T", "K AA1 N T R AE2 S T"),
    "convict": _other("K AH0 N V IH1 K T", "K AA1 N V IH0 K T"),
    "decrease": _other("D IH0 K R IY1 S", "D IY1 K R IY2 S"),
    "desert": _other("D IH0 Z ER1 T", "D EH1 Z ER0 T"),
    "estimate": _other("EH1 S T AH0 M EY2 T", "EH1 S T AH0 M AH0 T"),
    "excuse": _other("IH0 K S K Y UW1 Z", "IH0 K S K Y UW1 S"),
    "export": _other("IH0 K S P AO1 R T", "EH1 K S P AO0 R T"),
    "graduate": _other("G R AE1 JH AH0 W EY2 T", "G R AE1 JH AH0 W AH0 T"),
    "house": _other("HH AW1 Z", "HH AW1 S"),
    "import": _other("IH2 M P AO1 R T", "IH1 M P AO2 R T"),
    "increase": _verb("IH0 N K R IY1 S", "IH1 N K R IY2 S"),
    "insult": _other("IH2 N S AH1 L T", "IH1 N S AH2 L T"),
    "lead": _verb("L IY1 D", "L IY1 D"),
    "live": _verb("L IH1 V", "L AY1 V"),
    "object": _other("AH0 B JH EH1 K T", "AA1 B JH EH0 K T"),
    "perfect": _other("P ER0 F EH1 K T", "P ER1 F IH2 K T"),
    "permit": _verb("P ER0 M IH1 T", "P ER1 M IH2 T"),
    "present": _other("P R IY0 Z EH1 N T", "P R EH1 Z AH0 N T"),
    "produce": _verb("P R AH0 D UW1 S", "P R OW1 D UW0 S"),
    "progress": _other("P R AH0 G R EH1 S", "P R AA1 G R EH2 S"),
    "project": _other("P R AA0 JH EH1 K T", "P R AA1 JH EH0 K T"),
    "protest": _other("P R AH0 T EH1 S T", "P R OW1 T EH2 S T"),
    "read": _verb("R IY1 D", "R IY1 D"),
    "rebel": _other("R IH0 B EH1 L", "R EH1 B AH0 L"),
    "record": _other("R AH0 K AO1 R D", "R EH1 K ER0 D"),
    "refuse": _verb("R AH0 F Y UW1 Z", "R EH1 F Y UW2 Z"),
    "separate": _other("S EH1 P ER0 EY2 T", "S EH1 P ER0 IH0 T"),
    "subject": _other("S AH0 B JH EH1 K T", "S AH1 B JH IH0 K T"),
    "survey": _other("S ER0 V EY1", "S ER1 V EY2"),
    "suspect": _verb("S AH0 S P EH1 K T", "S AH1 S P EH2 K T"),
    "tear": _verb("T EH1 R", "T IH1 R"),
    "tears": _other("T EH1 R Z", "T IH1 R Z"),
    "transfer": _other("T R AE0 N S F ER1", "T R AE1 N S F ER0"),
    "transport": _other("T R AE0 N S P AO1 R T", "T R AE1 N S P AO0 R T"),
    "use": _verb("Y UW1 Z", "Y UW1 S"),
    "wind": _other("W AY1 N D", "W IH1 N D"),
    "wound": _other("W UW1 N D", "W UW1 N D"),
}


def heteronym(word: str, previous: str) -> str | None:
    """Return the phonemes of a listed word after `previous`, both lower case; else None."""
    if word == "read" and previous in _PERFECT_CUES:
        return "R EH1 D"
    entry = _WORDS.get(word)
    if entry is None:
        return None
    if previous in _VERB_CUES:
        return entry.verb
    return entry.other if previous in _OTHER_CUES else entry.default
