"""Cut a text into the pieces that are spoken one by one, by GPT-SoVITS's methods cut0 to cut5.

| method | cuts |
| --- | --- |
| `cut0` | at line breaks alone, as every method does |
| `cut1` | after every fourth clause |
| `cut2` | after the clause that makes a piece longer than 50 characters |
| `cut3` | after "。" |
| `cut4` | after "." |
| `cut5` | after every mark |

`compat=True` is upstream to the character, whose faults the default has not. The default changes no
character of the text but repeated marks (upstream writes "。" for "……" where cut1 and cut2 cut, and
adds "。" to English); marks inside numbers and names end nothing; cut5 cuts at ~ : — ; and ； as
well; the last group of cut1 has at most four clauses; no line is glued to the next without a mark;
a closing quote stays with its sentence; no piece is empty or longer than `LONGEST`, and a part of a
sentence is not shorter than five characters of Chinese or twenty of an alphabet.
"""

from __future__ import annotations

import re

from mlx_vits.synthesis.text_marks import (
    CLAUSE_MARKS,
    SPLITTERS,
    TextError,
    collapse_marks,
    end_pattern,
    final_mark,
    finish,
    first_clause,
    is_spoken,
)
from mlx_vits.synthesis.upstream_split import (
    group_by_length,
    merge_short,
    upstream_cut,
    upstream_pre_segment,
)

METHODS = ("cut0", "cut1", "cut2", "cut3", "cut4", "cut5")
LONGEST = 510  # characters; what BERT reads at once is 512 tokens
_CLAUSES_A_GROUP = 4
_SHORT_START = 4  # characters: a shorter first clause is easily swallowed
_MARKS = {"cut1": SPLITTERS, "cut2": SPLITTERS, "cut3": "。", "cut4": ".", "cut5": CLAUSE_MARKS}
_ENDS_SENTENCE = re.compile(r"[.?!…。？！]\W*$")
_IDEOGRAPHS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]"
)
_ENDS = {method: end_pattern(marks) for method, marks in _MARKS.items()}


def cut(text: str, method: str, *, compat: bool = False) -> str:
    """Insert line breaks where a method cuts; pieces without a letter or a digit are left out.

    As upstream's, cut3 and cut4 drop the mark that they cut at.

    Args:
        text: any text.
        method: one of `METHODS`.
        compat: exactly as upstream.

    Raises:
        TextError: no such method.
        IndexError: with `compat`, cut1 or cut2 of an empty text.
    """
    _check_method(method)
    if compat:
        return upstream_cut(text, method)
    dropped = _MARKS[method] if method in ("cut3", "cut4") else ""
    return "\n".join(piece.rstrip(dropped) if dropped else piece for piece in _cut(text, method))


def pre_segment(text: str, language: str, method: str, *, compat: bool = False) -> list[str]:
    """Cut a text into pieces that are long enough to be spoken alone and end in a mark.

    Args:
        text: what is to be spoken.
        language: its code; "en" alone gets "." where a mark is missing, the others "。".
        method: one of `METHODS`.
        compat: exactly as upstream, which collapses no marks here (see `collapse_marks`).

    Returns:
        At least one piece of 1 to `LONGEST` characters. With `compat` there may be none, an empty
        one, or a longer one.

    Raises:
        TextError: no such method, or nothing to speak in the text.
    """
    _check_method(method)
    if compat:
        return upstream_pre_segment(text, language, method)
    if not is_spoken(text):
        raise TextError("The text has nothing to speak in it; give it at least one word.")
    text = collapse_marks(text.lstrip("\r\n"))
    if _needs_lead(text, language, method):
        text = final_mark(language) + text
    pieces = [finish(piece, language) for piece in _cut(text, method)]
    merged = merge_short(pieces, join=_join, length=_spoken_length)
    return [part for piece in merged for part in split_long(piece, language)]


def split_long(text: str, language: str, longest: int = LONGEST) -> list[str]:
    """Cut a text into pieces of at most `longest` characters: after marks, at blanks, or anywhere.

    Args:
        text: one piece.
        language: as for `pre_segment`; pieces that end in no mark get one.
        longest: at least 2.
    """
    if len(text) <= longest:
        return [text]
    pieces: list[str] = []
    start, best = 0, 0
    for end in [*(match.end() for match in _ENDS["cut5"].finditer(text)), len(text)]:
        if end - start > longest and best > start:
            pieces.append(text[start:best])
            start = best
        while end - start > longest:
            # One character is left for the mark that the piece is given.
            blank = text.rfind(" ", start + longest // 2, start + longest - 1)
            stop = blank + 1 or start + longest - 1
            pieces.append(text[start:stop])
            start = stop
        best = end
    pieces.append(text[start:])
    return [finish(piece, language) for piece in pieces if is_spoken(piece)]


def finish_prompt(text: str, language: str, *, compat: bool = False) -> str:
    """Return the words of the reference recording with a final mark; "" if there are none.

    Args:
        text: the prompt text.
        language: its code, as for `pre_segment`.
        compat: exactly as upstream.

    Raises:
        IndexError: with `compat`, a text of line breaks alone.
    """
    if compat:
        text = text.strip("\n")
        return text if text[-1] in SPLITTERS else text + final_mark(language)
    text = text.strip()
    return finish(text, language) if is_spoken(text) else ""


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise TextError(f"There is no way to cut a text named {method!r}; use cut0 to cut5.")


def _cut(text: str, method: str) -> list[str]:
    """Cut into spoken pieces, with marks and blanks as they are written."""
    pieces: list[str] = []
    for line in text.splitlines():
        clauses = [line] if method == "cut0" else _clauses(line, _ENDS[method])
        if method == "cut1":
            starts = range(0, len(clauses), _CLAUSES_A_GROUP)
            clauses = ["".join(clauses[start : start + _CLAUSES_A_GROUP]) for start in starts]
        elif method == "cut2":
            clauses = group_by_length(clauses)
        pieces += [clause for clause in clauses if is_spoken(clause)]
    return pieces


def _clauses(line: str, end: re.Pattern[str]) -> list[str]:
    """Cut after marks; what has no letter or digit belongs to the clause before."""
    starts = [0]  # of the clauses but for the first, and of what follows the last
    done, spoken = 0, False
    for stop in [*(match.end() for match in end.finditer(line)), len(line)]:
        if is_spoken(line[done:stop]):
            starts += [done] if spoken else []
            spoken = True
        done = stop
    return [line[i:j] for i, j in zip(starts, [*starts[1:], len(line)], strict=True)]


def _needs_lead(text: str, language: str, method: str) -> bool:
    """Tell whether a mark goes before a short first clause; a cut at that mark would drop it."""
    if method in ("cut3", "cut4", "cut5") and final_mark(language) in _MARKS[method]:
        return False
    return text[0] not in SPLITTERS and len(first_clause(text)) < _SHORT_START


def _spoken_length(text: str) -> float:
    """Count characters; in a part of a sentence four of an alphabet are worth one of Chinese."""
    if _ENDS_SENTENCE.search(text[-20:]):
        return len(text)
    return sum(1.0 if _IDEOGRAPHS.match(character) else 0.25 for character in text)


def _join(first: str, second: str) -> str:
    """Join two pieces, with a blank between English ones that a line break kept apart."""
    apart = first[-1:].isascii() and second[:1].isascii() and second[:1].isalnum()
    return f"{first} {second}" if first and apart else first + second
