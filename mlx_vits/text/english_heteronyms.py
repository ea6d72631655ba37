"""English heteronyms: words with one spelling and two pronunciations.

Most differ as verb and as noun or adjective ("to record", "a record"): `english_roles` tells these
apart, and `data/english_heteronyms.tsv` has their phonemes, those of g2p_en's list where it has
the word, as upstream. Some differ in meaning or tense ("lead", "read"); each has a rule here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from mlx_vits.text.data_files import read_data
from mlx_vits.text.english_roles import (
    ADJECTIVES,
    BE,
    CONJUNCTIONS,
    DETERMINERS,
    HAVE,
    LINKING,
    MARKS,
    MODALS,
    PARTICLES,
    POSSESSIVES,
    PREPOSITIONS,
    SUBJECTS,
    after,
    before,
    is_plural,
    role,
    words,
)

Text = Sequence[str]


class Heteronym(NamedTuple):
    """Phonemes as a verb and otherwise, and which of them where nothing decides."""

    verb: str
    other: str
    default: str


@cache
def heteronyms() -> dict[str, Heteronym]:
    """Words that differ as a verb and as a noun or adjective."""
    lines = read_data("english_heteronyms.tsv").decode("utf-8").splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return {
        word: Heteronym(verb, other, verb if default == "verb" else other)
        for word, verb, other, default in rows
    }


@cache
def listed() -> frozenset[str]:
    """All heteronyms, in lower case."""
    return frozenset([*heteronyms(), *(f"{word}s" for word in heteronyms()), *_SPECIAL])


def heteronym(text: Text, index: int) -> str | None:
    """Return the phonemes of a word where it is a heteronym, else None.

    Args:
        text: words and marks of the sentence, as they are written.
        index: of the word.
    """
    word = text[index].lower()
    special, stem = _SPECIAL.get(word), word.removesuffix("s")
    entry = heteronyms().get(word) or heteronyms().get(stem)
    if special is None and entry is None:
        return None
    lower = [other.lower() for other in text]
    if special is not None:
        return special(lower, index) if special is not _polish else _polish(text, index)
    assert entry is not None
    used = role(lower, index)
    spoken = entry.default if used is None else entry.verb if used == "verb" else entry.other
    return spoken if word in heteronyms() else _with_s(spoken)


def _with_s(phonemes: str) -> str:
    last = phonemes.split()[-1]
    return phonemes + (" IH0 Z" if last in ("S", "Z") else " S" if last in "PTKF" else " Z")


def _near(text: Text, cues: frozenset[str]) -> bool:
    return any(word in cues for word in text)


def _is_predicate(text: Text, index: int) -> bool:
    """Whether a word follows a form of "be" or its like, adverbs left out."""
    at = before(text, index)
    return at >= 0 and (text[at] in BE or text[at] in LINKING)


def _subject_before(text: Text, index: int) -> bool:
    """Whether the word before may be the subject of a verb in the past."""
    at = before(text, index)
    if at < 0:
        return False
    left, farther = text[at], text[at - 1] if at else ""
    if left in SUBJECTS:
        return True
    closed = DETERMINERS | PREPOSITIONS | ADJECTIVES | BE | HAVE | MODALS | words("to that")
    return left not in closed and (farther in DETERMINERS or farther in ADJECTIVES or not farther)


# A verb in the past, in words whose present is spelled otherwise.
_PAST = words(
    "was were did had went came said told saw took gave made found knew thought heard sat wrote "
    "got left kept felt began ran stood met brought bought fell lost yesterday ago"
)
_RED, _REED = "R EH1 D", "R IY1 D"


def _read(text: Text, index: int) -> str:
    at = before(text, index)
    left, right = text[at] if at >= 0 else "", after(text, index)
    if at < 0 and not left:
        return _RED if right == "by" else _REED
    reach = [text[i] for i in range(index - 1, max(-1, index - 6), -1)]
    for word in reach:
        if word in MARKS:
            break
        if word in HAVE:
            return _RED
        if word == "to" or word in MODALS or word in ("please", "let", "help", "make"):
            return _REED
    if left in BE or left in words("get gets got"):
        return _RED
    if left in DETERMINERS or left in ADJECTIVES:
        return _REED
    return _RED if _is_past(text, at, left) else _REED


def _is_past(text: Text, at: int, left: str) -> bool:
    """Whether "read" is past: its subject would ask for "reads", or the sentence says so."""
    tells = any(
        word in _PAST or (word.endswith("ed") and len(word) > 4 and text[i - 1] not in BE | HAVE)
        for i, word in enumerate(text)
    ) or any(
        pair in (("last", time) for time in ("night", "week", "year", "month", "time", "summer"))
        for pair in pairwise(text)
    )
    if left in ("i", "we", "you", "they", "people") or left in CONJUNCTIONS:
        return tells
    if left in ("who", "that") and at:
        left = text[at - 1]
    return tells or not is_plural(left)


_METAL = words("pipe pipes paint poisoning bullet bullets metal copper zinc tin iron mercury acid")
_FIRST = words("singer guitar role actor actress author story character time vocals vocal")


def _lead(text: Text, index: int) -> str:
    left, right = text[index - 1] if index else "", after(text, index)
    if right in _METAL:
        return "L EH1 D"
    mass = role(text, index) == "noun" and left not in DETERMINERS | ADJECTIVES
    is_name = right in _FIRST or left in ("take", "takes", "took", "taking", "in")
    return "L EH1 D" if mass and not is_name and left != "'s" else "L IY1 D"


_ON_STAGE = words(
    "music show shows concert concerts audience band broadcast broadcasts stream streams coverage "
    "performance performances event events wire wires ammunition bait action recording recordings "
    "album update updates feed feeds video chat birth births animals television tv radio version"
)
_GO_LIVE = words(
    "broadcast broadcasts streamed stream perform performed performing recorded go goes going went "
    "gone aired air airs shown sing sang sung singing play plays played playing watch watched "
    "watching came coming heard reporting reported"
)


def _live(text: Text, index: int) -> str:
    right = after(text, index)
    left = text[before(text, index)] if before(text, index) >= 0 else ""
    is_state = left in BE and right in MARKS | words("on from in at") | {""}
    lively = left in _GO_LIVE or left in DETERMINERS | ADJECTIVES or is_state
    lively = lively and role(text, index) != "verb"
    return "L AY1 V" if lively or right in _ON_STAGE else "L IH1 V"


def _lives(text: Text, index: int) -> str:
    return "L IH1 V Z" if role(text, index) == "verb" else "L AY1 V Z"


def _close(text: Text, index: int) -> str:
    left, right = text[index - 1] if index else "", after(text, index)
    if right == "of" or (left == "a" and right in MARKS):
        return "K L OW1 Z"  # the end
    near = right == "to" or left in words("so too very how as quite")
    return "K L OW1 Z" if role(text, index) == "verb" and not near else "K L OW1 S"


def _as_verb(verb: str, other: str) -> Callable[[Text, int], str]:
    return lambda text, index: verb if role(text, index) == "verb" else other


def _tear(text: Text, index: int) -> str:
    ripped = after(text, index) in ("in", "on") or text[index - 1 : index] == ["and"]
    return "T EH1 R" if ripped or role(text, index) == "verb" else "T IH1 R"


_SMALL = words(
    "amount amounts quantity quantities detail details trace traces particle particles difference "
    "differences fraction fractions change changes variation variations piece pieces crack cracks "
    "dose doses proportion proportions"
)


def _minute(text: Text, index: int) -> str:
    tiny = after(text, index) in _SMALL or _is_predicate(text, index)
    return "M AY0 N UW1 T" if tiny else "M IH1 N AH0 T"


_ARCHERY = words(
    "arrow arrows ribbon ribbons violin cello string strings hair tie ties tied archer"
)


def _bow(text: Text, index: int) -> str:
    bends = role(text, index) == "verb" or _near(text, words("ship boat stern deck vessel"))
    takes = text[max(0, index - 2)] in words("take took takes taking taken") and index > 1
    return "B AW1" if (bends or takes) and not _near(text, _ARCHERY) else "B OW1"


_ANGRY = words("terrible blazing heated fierce angry bitter furious family awful")


def _row(text: Text, index: int) -> str:
    left = text[index - 1] if index else ""
    argued = left in _ANGRY or (after(text, index) == "about" and role(text, index) != "verb")
    return "R AW1" if argued else "R OW1"


def _wound(text: Text, index: int) -> str:
    right = after(text, index)
    turned = right in PARTICLES | POSSESSIVES | words("around round through along into the it")
    had = index > 0 and text[index - 1] in HAVE | BE and right in PARTICLES | words("around round")
    past = turned and (_subject_before(text, index) or had)
    return "W AW1 N D" if past else "W UW1 N D"


def _dove(text: Text, index: int) -> str:
    goes = after(text, index) in words(
        "into in off under down for from through to deep behind head headfirst"
    )
    return "D OW1 V" if goes and _subject_before(text, index) else "D AH1 V"


_FISHY = words(
    "sea largemouth smallmouth striped grilled fried baked lake river pond fish fishing caught "
    "catch trout salmon boat hooked chilean fillet fillets"
)


def _bass(text: Text, index: int) -> str:
    return "B AE1 S" if _near(text, _FISHY) else "B EY1 S"


def _content(text: Text, index: int) -> str:
    at = before(text, index)
    satisfied = after(text, index) in ("with", "to") or _is_predicate(text, index)
    noun = at >= 0 and text[at] in DETERMINERS
    verb = role(text, index) == "verb"
    return "K AH0 N T EH1 N T" if (satisfied and not noun) or verb else "K AA1 N T EH0 N T"


def _invalid(text: Text, index: int) -> str:
    right = after(text, index)
    at = before(text, index)
    ends = right in MARKS | BE | HAVE | MODALS | PREPOSITIONS | {"", "who"}
    is_person = at >= 0 and text[at] in DETERMINERS and ends
    return "IH1 N V AH0 L AH0 D" if is_person else "IH2 N V AE1 L AH0 D"


def _polish(text: Text, index: int) -> str:
    """The language, where it is written with a capital within a sentence."""
    starts = index == 0 or text[index - 1] in MARKS
    verb = role([word.lower() for word in text], index) == "verb"
    is_name = text[index] == "Polish" and not (starts and verb)
    return "P OW1 L IH0 SH" if is_name else "P AA1 L IH0 SH"


def _resume(text: Text, index: int) -> str:
    noun = role(text, index) == "noun"
    return "R EH1 Z AH0 M EY2" if noun else "R IH0 Z UW1 M"


_SPECIAL: dict[str, Callable[[Text, int], str]] = {
    "bass": _bass,
    "bow": _bow,
    "close": _close,
    "content": _content,
    "desert": _as_verb("D IH0 Z ER1 T", "D EH1 Z ER0 T"),
    "dove": _dove,
    "house": _as_verb("HH AW1 Z", "HH AW1 S"),
    "invalid": _invalid,
    "lead": _lead,
    "live": _live,
    "lives": _lives,
    "minute": _minute,
    "polish": _polish,
    "read": _read,
    "resume": _resume,
    "row": _row,
    "sow": lambda text, index: "S AW1" if role(text, index) == "noun" else "S OW1",
    "tear": _tear,
    "tears": _as_verb("T EH1 R Z", "T IH1 R Z"),
    "wind": _as_verb("W AY1 N D", "W IH1 N D"),
    "winds": _as_verb("W AY1 N D Z", "W IH1 N D Z"),
    "wound": _wound,
}
