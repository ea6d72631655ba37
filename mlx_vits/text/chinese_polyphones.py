"""Readings of Chinese characters that the words beside them decide.

`data/mandarin_polyphones.tsv` has the rules, in the order in which they are tried. They are for
characters outside the words of pypinyin's dictionary, above all those that are words themselves
(给, 得, 还): g2pM, trained on an encyclopedia, too often takes the reading that is frequent there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from typing import NamedTuple

from mlx_vits.text.chinese_marks import MARKS
from mlx_vits.text.data_files import read_data

_REACH = 12  # characters to either side


class Rule(NamedTuple):
    """A reading, and what the clause has before and after the character for it."""

    before: re.Pattern[str]
    after: re.Pattern[str]
    reading: str


@cache
def rules() -> dict[str, list[Rule]]:
    """The rules of each character."""
    found: dict[str, list[Rule]] = defaultdict(list)
    for line in read_data("mandarin_polyphones.tsv").decode("utf-8").splitlines():
        if not line.startswith("#"):
            character, before, after, reading = line.split("\t")
            ends = re.compile(f"(?:{before})$" if before else "")
            found[character].append(Rule(ends, re.compile(after), reading))
    return dict(found)


def reading_in(text: str, index: int) -> str | None:
    """Return the reading of a character such as "zhong4", None where no rule has one.

    Args:
        text: Chinese characters and marks.
        index: of the character.
    """
    known = rules().get(text[index])
    if known is None:
        return None
    before = _last_clause(text[max(0, index - _REACH) : index])
    after = text[index + 1 : index + 1 + _REACH]
    return next(
        (rule.reading for rule in known if rule.before.search(before) and rule.after.match(after)),
        None,
    )


def _last_clause(text: str) -> str:
    return re.split(f"[{re.escape(MARKS)}]", text)[-1]
