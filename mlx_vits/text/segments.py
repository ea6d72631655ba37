"""Cut a text to be spoken into pieces of one language, by GPT-SoVITS's eleven language values.

| value | pieces |
| --- | --- |
| `en` | English, uncut |
| `zh`, `ja`, `ko`, `yue` | English, and everything else in that language |
| `all_zh`, `all_ja`, `all_ko`, `all_yue` | the same, but numbers are never English |
| `auto`, `auto_yue` | English, Japanese, Korean, and Chinese or Cantonese |

Upstream's `LangSegmenter` and its `get_phones_and_bert`, on top of split-lang. `compat=True` is
upstream to the character. The default differs where upstream is at fault:

* Nothing is lost. Upstream drops letters of scripts that it does not know ("Привет", "Übermut");
  here Latin letters with accents are English, and others stay in the piece, so that its front end
  can say that it does not read them.
* A few Chinese characters are easily taken for Japanese under `auto`, and the other way round. Here
  characters are Japanese only in a text with kana (see `han_languages`).
* What has no Latin letter ("🎵", "½", "α") is no English, but belongs to what is before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from mlx_vits.errors import UserError
from mlx_vits.text.han_languages import settle_characters
from mlx_vits.text.language_splitter import Detector, Item, joined, split_by_language

LANGUAGES = (
    *("auto", "auto_yue", "en", "zh", "ja", "ko", "yue"),
    *("all_zh", "all_ja", "all_ko", "all_yue"),
)
_DIGIT, _UNKNOWN = "digit", "x"
_LONGEST = 1000  # characters that split-lang is given at once: its time grows faster than the text
_CHUNK = re.compile(rf"(?s:.{{1,{_LONGEST}}})(?:\Z|(?<=[。！？!?\s]))|(?s:.{{1,{_LONGEST}}})")
_KANA = "\u3041-\u3096\u3099\u309a\u30a1-\u30fa\u30fc"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_BETWEEN = "0-9\u3001-\u301c。！？.!?… "
_KANA_RUN = re.compile(rf"([{_KANA}]+(?:[{_BETWEEN}]*[{_KANA}]+)*)")
_HANGUL_RUN = re.compile(rf"([{_HANGUL}]+(?:[{_BETWEEN}]*[{_HANGUL}]+)*)")
_HALF_WIDTH_KANA = re.compile("[\uff66-\uff9f]")
_CHINESE = re.compile(f"[{_HAN}]")
_NOT_CHINESE = re.compile(rf"[^{_HAN}{_BETWEEN}/]+")  # as upstream has it
_ASCII_WORDS = re.compile(
    r"(?=[^a-zA-Z]*[a-zA-Z])[\s\u0020-\u007e\u2000-\u206f\u3000-\u303f\uff00-\uffef]+"
)
_LATIN = re.compile("[a-zA-Z\u00c0-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a]")
_EAST_ASIAN = re.compile(f"[{_HAN}々〇{_KANA}\uff66-\uff9f{_HANGUL}]")
_SPOKEN = re.compile(r"[^\W_]")
_STARTS_WITH_MARK = re.compile(r"[,.!?，。！？]")
_ENDS_WITH_MARK = re.compile(r"[,.!?，。！？]\Z")


class Segment(NamedTuple):
    """A piece of a text and the code of its language: en, zh, ja, ko or yue.

    With `compat` and under `auto`, a text of punctuation alone is of the language "punctuation".
    """

    language: str
    text: str


def segment(
    text: str, language: str, *, detector: Detector | None = None, compat: bool = False
) -> list[Segment]:
    """Cut a text into pieces of one language each.

    Args:
        text: what is to be spoken.
        language: one of `LANGUAGES`.
        detector: in place of the shipped model, see `split_by_language`.
        compat: exactly as upstream.

    Returns:
        Neighbours differ in language. Joined they are the text, without blanks around it and with
        one blank for a run of them; a blank text has no piece.

    Raises:
        UserError: no such language value, or a package is missing that the text needs.
        IndexError: with `compat`, a blank text.
    """
    if language not in LANGUAGES:
        raise UserError(f"There is no language {language!r}; use one of {', '.join(LANGUAGES)}.")
    text = re.sub(" {2,}", " ", text)
    if compat:
        return _routed(text, language, detector, compat)
    text = text.strip()
    if not text:
        return []
    whole = _single_language(text, language)
    return [Segment(whole, text)] if whole else _routed(text, language, detector, compat)


def _single_language(text: str, language: str) -> str:
    """Return the language of a text that needs no detector, else ""."""
    base = language.removeprefix("all_")
    is_numbered = base != language and re.search(r"\d", text)
    if language == "en" or (_is_english(text) and not is_numbered):
        return "en"
    return "" if base.startswith("auto") or _LATIN.search(text) else base


def _is_english(text: str) -> bool:
    return bool(_LATIN.search(text)) and not _EAST_ASIAN.search(text)


def _routed(text: str, language: str, detector: Detector | None, compat: bool) -> list[Segment]:
    if language == "en":
        return [Segment("en", text)]
    base = language.removeprefix("all_")
    find = segmenter if compat else _lossless
    pieces = find(text, "" if base == language else base, detector)
    if base.startswith("auto"):
        pieces = pieces if compat else settle_characters(pieces)
        chinese = "yue" if base == "auto_yue" else "zh"
        kinds = [chinese if piece.kind == "zh" else piece.kind for piece in pieces]
    else:
        kinds = ["en" if piece.kind == "en" else base for piece in pieces]
    renamed = (Item(kind, piece.text) for kind, piece in zip(kinds, pieces, strict=True))
    return [Segment(*piece) for piece in joined(renamed)]


def segmenter(text: str, default: str, detector: Detector | None = None) -> list[Item]:
    """Cut as upstream's `LangSegmenter.getTexts`: English, and `default` or what else there is."""
    pieces: list[Item] = []
    for item in split_by_language(text, detector):
        if item.kind == _DIGIT:
            pieces.append(Item(default or _DIGIT, item.text))
        elif _ASCII_WORDS.fullmatch(item.text):
            pieces.append(Item("en", item.text))
        elif default:
            pieces.append(Item(default, item.text))
        else:
            pieces += [_only_chinese(part) for part in _by_script(item)]
    return _settled(pieces)


def _lossless(text: str, default: str, detector: Detector | None) -> list[Item]:
    """Cut as `segmenter` does, but lose no character and take time linear in the text."""
    pieces: list[Item] = []
    for chunk in _CHUNK.findall(text):
        items = split_by_language(chunk, detector) if chunk.strip() else []
        # split-lang drops the blanks around a text.
        before = chunk[: len(chunk) - len(chunk.lstrip())] if items else chunk
        after = chunk[len(chunk.rstrip()) :] if items else ""
        pieces.append(Item(_UNKNOWN, before))
        for item in items:
            pieces += _kept_whole(item, default)
        pieces.append(Item(_UNKNOWN, after))
    return _settled([piece for piece in pieces if piece.text])


def _kept_whole(item: Item, default: str) -> list[Item]:
    if item.kind == _DIGIT:
        return [Item(default or _DIGIT, item.text)]
    if _is_english(item.text):
        return [Item("en", item.text)]
    if not _SPOKEN.search(item.text):
        return [Item(_UNKNOWN, item.text)]
    if default:
        return [Item(default, item.text)]
    return [Item(_own_language(part), part.text) for part in _by_script(item)]


def _own_language(part: Item) -> str:
    """Return the language of a part without Latin letters; `_UNKNOWN` for other scripts."""
    if part.kind in ("zh", "ja", "ko"):
        return part.kind
    if _CHINESE.search(part.text):  # beyond the characters that split-lang knows
        return "zh"
    return "ja" if _HALF_WIDTH_KANA.search(part.text) else _UNKNOWN


def _by_script(item: Item) -> list[Item]:
    """Cut an item where kana and Hangul begin and end."""
    parts = [item] if item.kind == "ja" else _cut_out(_KANA_RUN, "ja", item)
    parts = [
        piece
        for part in parts
        for piece in ([part] if part.kind == "ko" else _cut_out(_HANGUL_RUN, "ko", part))
    ]
    return parts if len(parts) > 1 else [item]


def _cut_out(run: re.Pattern[str], kind: str, item: Item) -> list[Item]:
    parts = run.split(item.text)
    return [Item(kind if i % 2 else item.kind, part) for i, part in enumerate(parts) if part]


def _only_chinese(part: Item) -> Item:
    """Drop what is not Chinese from a part of unknown language, if that leaves anything."""
    kept = _NOT_CHINESE.sub("", part.text) if part.kind == _UNKNOWN else ""
    return Item("zh", kept) if kept else part


def _settled(pieces: list[Item]) -> list[Item]:
    """Give digits and unknown parts a neighbour's language."""
    return joined(_settle_unknown(joined(_settle_digits(joined(pieces)))))


def _settle_digits(pieces: list[Item]) -> Iterable[Item]:
    before: Item | None = None
    for index, piece in enumerate(pieces):
        if piece.kind == _DIGIT:
            after = pieces[index + 1] if index + 1 < len(pieces) else None
            piece = Item(_language_of_digits(before, piece.text, after), piece.text)
        yield piece
        before = piece


def _language_of_digits(before: Item | None, digits: str, after: Item | None) -> str:
    if before is None or after is None:
        return (before or after or Item("zh", "")).kind
    if _ENDS_WITH_MARK.search(before.text):
        return after.kind
    if _STARTS_WITH_MARK.match(after.text) or digits.endswith(("。", ".")):
        return before.kind
    return before.kind if len(before.text) >= len(after.text) else after.kind


def _settle_unknown(pieces: list[Item]) -> Iterable[Item]:
    kind = pieces[1].kind if len(pieces) > 1 else "zh"
    for piece in pieces:
        kind = kind if piece.kind == _UNKNOWN else piece.kind
        yield Item(kind, piece.text)
