"""Punctuation of English text: what is replaced, kept as a pause, or dropped.

Upstream keeps `, . ! ? -` and drops all other marks. Its table maps colons and semicolons to
commas, but an escaping error makes it drop them; here they are commas. Full-width marks equal ASCII
ones, and a dash between words is the symbol "-", as in upstream's Chinese.
"""

from __future__ import annotations

import re
import unicodedata

_REPLACED = str.maketrans(
    {
        **dict.fromkeys("‘’‛ʼ´`′", "'"),
        **dict.fromkeys('“”„‟«»″"', " "),
        **dict.fromkeys("()[]{}<>*_~^|\\", " "),
        **dict.fromkeys("—―─", " - "),
        **dict.fromkeys("‐‑−", "-"),
        **{"。": ". ", "、": ", ", "²": " squared ", "³": " cubed ", "\u00ad": None},
        # Letters without a Unicode decomposition into ASCII.
        **{"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ı": "i"},
        **{"ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th"},
    }
)
# Signs that are said. Most would be dropped with the brackets and quotes among them.
_SIGNS = (
    (re.compile("№"), " number "),
    (re.compile(r"[(]c[)](?= ?\d{4}\b)|©", re.IGNORECASE), " copyright "),
    (re.compile("♥|(?<!is |be |an )(?<!was )(?<!are )(?<!\\b[a-z] )(?<!\\S)<3+(?!\\S)"), " heart "),
    (re.compile(r"<=|≤"), " less than or equal to "),
    (re.compile(r"(?<![-=])>=|≥"), " greater than or equal to "),
    (re.compile(r"<(?= ?[$€£¥]?-?\.?\d)"), " less than "),
    (re.compile(r"(?<![-=])>(?= ?[$€£¥]?-?\.?\d)"), " greater than "),
    (re.compile("±"), " plus or minus "),
    (re.compile("≠"), " not equal to "),
    (re.compile("∞"), " infinity "),
    (re.compile("√"), " square root of "),
    (re.compile("™"), ""),
    (re.compile(r"(?<=\d)~(?=\d)"), "-"),
    (re.compile(r"[~≈](?= ?[$€£¥]?\.?\d)"), " about "),
    (re.compile(r"\b(\d+|[A-Za-z])\^2\b"), r"\1 squared "),
    (re.compile(r"\b([A-Za-z])\^3\b"), r"\1 cubed "),
    (re.compile(r"\b([\d.]*\d|[A-Za-z])\^(-?)(\d+)\b"), r"\1 to the power of \2\3"),
    (re.compile(r"(?<![A-Za-z])([A-Ga-g])(?:♯|#(?!\w))"), r"\1 sharp "),
    (re.compile(r"(?<![A-Za-z])([A-Ga-g])♭"), r"\1 flat "),
)
_VULGAR_FRACTION = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_WIDE = {ord("～"): "~", ord("＜"): "<", ord("＞"): ">", ord("＃"): "#"}
_EMOTICON = re.compile(r"(?<!\S)[:;]-?[()DP](?!\S)")


def plain_characters(text: str) -> str:
    """Convert characters to ASCII where they have such a form; keep the others."""
    text = _EMOTICON.sub(" ", text.translate(_WIDE))
    for sign, words in _SIGNS:
        text = sign.sub(words, text)
    # NFKC would turn "2½" into "21/2".
    text = _VULGAR_FRACTION.sub(_spell_fraction, text)
    text = unicodedata.normalize("NFKC", text.translate(_REPLACED)).translate(_REPLACED)
    text = re.sub(r"(?<=\d)\s*–\s*(?=\d)", "-", text).replace("–", " - ")
    bare = (c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return re.sub(r"\s+", " ", "".join(bare)).strip()


def _spell_fraction(match: re.Match[str]) -> str:
    whole, fraction = match.groups()
    spelled = unicodedata.normalize("NFKC", fraction).replace("\u2044", "/")
    return f"{whole} and {spelled}" if whole else spelled


def tidy_marks(text: str) -> str:
    """Reduce to words, `, . ! ?` after a word, and " - " between words; one of adjacent marks."""
    text = re.sub(r"(?<=\w):(?=\w)", " ", text)  # "one:fifteen", a time in words
    text = re.sub(r"[;:]", ",", text)
    text = re.sub(r"[^ A-Za-z',.?!-]", " ", text)
    text = re.sub(r"(?<!\S)-+(?!\S)|--+", " - ", text)
    text = re.sub(
        r"(?<![A-Za-z])'(?![A-Za-z])|-(?=[,.?!])|(?<=\S)-(?!\S)|(?<!\S)-(?=\S)", " ", text
    )
    text = re.sub(r"(?<!\s)\s+(?=[,.?!])", "", text)
    # As upstream, keep the first of several marks: more would add pauses.
    text = re.sub(r"([,.?!])(?:[\s,.?!]|-(?=[\s,.?!-]))*", r"\1 ", text)
    text = re.sub(r"(?<= -)(?:\s*[-,.?!])+", "", text)
    return re.sub(r"\s+", " ", text).strip(" -").lstrip(",.?! -")
