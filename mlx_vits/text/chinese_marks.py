"""Punctuation of Chinese text, for Mandarin and Cantonese: what is kept, and what is dropped.

The models have symbols for `, . ! ? … -`. Characters are mapped to them as in upstream's `rep_map`
(`text/chinese2.py`), with two exceptions: a dash (——), where a reader pauses, is a comma, as in
upstream's text splitting; and a hyphen inside Chinese is dropped, where upstream reads 减 (minus).
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

MARKS = ",.!?…-"
_FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}
# Full-width punctuation stays distinct from ASCII, which also occurs inside numbers and times.
_KEPT_WIDE = "，！？；"
_PLAIN = {
    **{wide: ascii_ for wide, ascii_ in _FULL_WIDTH.items() if chr(wide) not in _KEPT_WIDE},
    **dict.fromkeys(map(ord, "\u3000\u00a0\t\r"), " "),
    **dict.fromkeys(map(ord, "–‐‑−－"), "-"),
    **dict.fromkeys(map(ord, "〜∼"), "~"),
    **{ord("〇"): "零", ord("％"): "%", ord("￥"): "¥", ord("∶"): ":", ord("⁄"): "/"},
    **dict.fromkeys(map(ord, "\u200b\u200c\u200d\ufeff\ufe0f\u00ad"), None),
}
_MARK_OF = {
    **dict.fromkeys("：；，、·・:;—―─/", ","),
    **dict.fromkeys("。．\n", "."),
    **dict.fromkeys("！", "!"),
    **dict.fromkeys("？", "?"),
    **dict.fromkeys("~⋯", "…"),
}
_GREEK_NAMES = """
阿尔法 贝塔 伽玛 德尔塔 艾普西龙 捷塔 依塔 西塔 艾欧塔 喀帕 拉姆达 缪 拗 克西 欧米克伦 派 肉 西格玛
套 宇普西龙 服艾 器 普赛 欧米伽
"""
_GREEK = dict(zip("αβγδεζηθικλμνξοπρστυφχψω", _GREEK_NAMES.split(), strict=True))
_SILENT = frozenset("#*@&<>^`´|")


class Marked(NamedTuple):
    """A text of only Chinese characters and `MARKS`, and the characters dropped from it."""

    text: str
    unknown: list[str]


def plain_characters(text: str) -> str:
    """Map full-width letters and digits to ASCII, unify dashes, drop invisible characters."""
    text = "".join(str(unicodedata.decimal(c, c)) for c in text.translate(_PLAIN))
    return re.sub(r"([\u4e00-\u9fff])々", r"\1\1", text)


def spell_symbols(text: str) -> str:
    """Replace Greek letters by their names, and arithmetic signs by words."""
    text = "".join(_GREEK.get(c.lower(), c) for c in text)
    for sign, word in (("+", "加"), ("×", "乘"), ("÷", "除以"), ("=", "等于"), ("%", "百分号")):
        text = text.replace(sign, word)
    return text


def keep_marks(text: str) -> Marked:
    """Map marks to the models' own, one of adjacent ones; drop what cannot be read."""
    kept: list[str] = []
    unknown: list[str] = []
    text = re.sub(r"\.{2,}|。{2,}", "…", text)
    for piece in re.findall(r"[A-Za-z]+(?:['-][A-Za-z]+)*|.|\n", text):
        mark = piece if piece in MARKS else _MARK_OF.get(piece)
        if is_chinese(piece):
            kept.append(piece)
        elif mark == "-":
            continue
        elif mark:
            # As upstream, keep the first of several marks: more would add pauses.
            if not (kept and kept[-1] in MARKS):
                kept.append(mark)
        elif not is_silent(piece):
            unknown.append(piece)
    return Marked("".join(kept), unknown)


def is_chinese(character: str) -> bool:
    """Whether a string is one Chinese character, in the ranges that the front ends look up."""
    return len(character) == 1 and (
        "\u4e00" <= character <= "\u9fff"
        or "\u3400" <= character <= "\u4dbf"
        or "\uf900" <= character <= "\ufaff"
        or "\U00020000" <= character <= "\U0003134f"
    )


def is_silent(character: str) -> bool:
    """Whether a character is never read aloud: blanks, quotes, brackets, combining marks."""
    if len(character) > 1:
        return False
    kind = unicodedata.category(character)
    return character in _SILENT or kind[0] in "ZPCM" or kind == "Sk"
