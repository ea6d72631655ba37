"""How GPT-SoVITS cuts a text, faults included (`TTS_infer_pack/text_segmentation_method.py`,
`TextPreprocessor.py`); `text_split` is what to use."""

from __future__ import annotations

import re
from collections.abc import Callable

from mlx_vits.synthesis.text_marks import SPLITTERS, TextError, final_mark, first_clause

_SILENT = frozenset("!?…,.- ")
_CUT5_MARKS = ",.;?!、，。？！：…"
_CUT5 = re.compile(rf"[{_CUT5_MARKS.replace('.', '')}]|(?<!\d)\.|\.(?!\d)")
_CLAUSE = re.compile(f"[^{SPLITTERS}]*[{SPLITTERS}]")
_CLAUSES_A_GROUP = 4
_CHARACTERS_A_GROUP = 50


def upstream_cut(text: str, method: str) -> str:
    """Insert line breaks where a method of upstream cuts.

    Raises:
        IndexError: cut1 or cut2 of an empty text.
    """
    if method == "cut0":
        return "\n" if _is_silent(text) else text
    text = text.strip("\n")
    if method == "cut2" and len(_clauses(text)) < 2:
        return text
    silent = _CUT5_MARKS if method == "cut5" else _SILENT
    return "\n".join(piece for piece in _CUTS[method](text) if not set(piece).issubset(silent))


def upstream_pre_segment(text: str, language: str, method: str) -> list[str]:
    """Cut a text into the pieces that `TTS.run` speaks one by one.

    Raises:
        TextError: all pieces are blank.
    """
    text = text.strip("\n")
    if not text:
        return []
    if text[0] not in SPLITTERS and len(first_clause(text)) < 4:
        text = final_mark(language) + text
    pieces = upstream_cut(text, method).split("\n")
    if all(piece in ("", " ") for piece in pieces):
        raise TextError("The text has nothing to speak in it; give it at least one word.")
    result = []
    for piece in merge_short([piece for piece in pieces if piece not in ("", " ")]):
        if re.search(r"\w", piece):
            finished = piece if piece[-1] in SPLITTERS else piece + final_mark(language)
            result += [finished] if len(finished) <= 510 else upstream_split_long(finished)
    return result


def upstream_split_long(text: str, limit: int = 510) -> list[str]:
    """Group clauses into pieces of at most `limit` characters; a longer clause stays whole."""
    pieces, current = [], ""
    for part in re.split(f"([{SPLITTERS}])", text):
        if len(current) + len(part) > limit:
            pieces.append(current)
            current = part
        else:
            current += part
    return [*pieces, current] if current else pieces


def merge_short(
    pieces: list[str],
    shortest: int = 5,
    join: Callable[[str, str], str] = str.__add__,
    length: Callable[[str], float] = len,
) -> list[str]:
    """Join pieces shorter than `shortest` characters to the next one, at the end to the last."""
    merged: list[str] = []
    pending = ""
    for piece in pieces:
        pending = join(pending, piece)
        if length(pending) >= shortest:
            merged.append(pending)
            pending = ""
    if pending and merged:
        merged[-1] = join(merged[-1], pending)
    elif pending:
        merged.append(pending)
    return merged


def group_by_length(clauses: list[str]) -> list[str]:
    """Group clauses until they exceed 50 characters; a shorter last group joins the one before."""
    groups: list[str] = []
    pending: list[str] = []
    length = 0
    for clause in clauses:
        pending.append(clause)
        length += len(clause)
        if length > _CHARACTERS_A_GROUP:
            groups.append("".join(pending))
            pending, length = [], 0
    if pending:
        groups.append("".join(pending))
    if len(groups) > 1 and len(groups[-1]) < _CHARACTERS_A_GROUP:
        groups[-2:] = ["".join(groups[-2:])]
    return groups


def _is_silent(text: str) -> bool:
    return set(text).issubset(_SILENT)


def _clauses(text: str) -> list[str]:
    text = text.replace("……", "。").replace("——", "，")
    return _CLAUSE.findall(text if text[-1] in SPLITTERS else text + "。")


def _groups_of_four(text: str) -> list[str]:
    clauses = _clauses(text)
    # Without the last, which upstream overwrites.
    starts = range(0, len(clauses), _CLAUSES_A_GROUP)[:-1]
    if not starts:
        return [text]
    ends = [*starts[1:], len(clauses)]
    return ["".join(clauses[start:end]) for start, end in zip(starts, ends, strict=True)]


def _after_marks(text: str) -> list[str]:
    ends = [match.end() for match in _CUT5.finditer(text)]
    starts = [0, *ends]
    return [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]


_CUTS: dict[str, Callable[[str], list[str]]] = {
    "cut1": _groups_of_four,
    "cut2": lambda text: group_by_length(_clauses(text)),
    "cut3": lambda text: text.strip("。").split("。"),
    "cut4": lambda text: re.split(r"(?<!\d)\.(?!\d)", text.strip(".")),
    "cut5": _after_marks,
}
