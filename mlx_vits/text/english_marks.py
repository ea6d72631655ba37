"""Characters of English text: which stand for others, which are marks of a pause, which go.

Upstream keeps `, . ! ? -`, drops all other marks, and reads a colon or a semicolon as a comma in
its table of replacements (which its own escaping defeats: in truth they vanish there). Here they
are commas, the full-width marks count as the plain ones, and a dash between words is the symbol
"-", as it is in upstream's Chinese.
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
        # Letters that no decomposition turns into plain ones.
        **{"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ı": "i"},
        **{"ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th"},
    }
)
_VULGAR_FRACTION = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_EMOTICON = re.compile(r"(?<!\S)[:;]-?[()DP](?!\S)")


def plain_characters(text: str) -> str:
    """The text in ASCII as far as its characters have a plain form; the others stay."""
    text = _EMOTICON.sub(" ", text)
    # Compatibility composition would join "2½" to "21/2".
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
    """Only words, `, . ! ?` after a word, and " - " between words; one mark where many meet."""
    text = re.sub(r"(?<=\w):(?=\w)", " ", text)  # "one:fifteen", a time in words
    text = re.sub(r"[;:]", ",", text)
    text = re.sub(r"[^ A-Za-z',.?!-]", " ", text)
    text = re.sub(r"(?<!\S)-+(?!\S)|--+", " - ", text)
    text = re.sub(
        r"(?<![A-Za-z])'(?![A-Za-z])|-(?=[,.?!])|(?<=\S)-(?!\S)|(?<!\S)-(?=\S)", " ", text
    )
    text = re.sub(r"(?<!\s)\s+(?=[,.?!])", "", text)
    # Upstream's rule: the first of several marks stays. It would leak pauses otherwise.
    text = re.sub(r"([,.?!])(?:[\s,.?!]|-(?=[\s,.?!-]))*", r"\1 ", text)
    text = re.sub(r"(?<= -)(?:\s*[-,.?!])+", "", text)
    return re.sub(r"\s+", " ", text).strip(" -").lstrip(",.?! -")
