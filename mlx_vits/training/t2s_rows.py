"""Which clips of a prepared folder the GPT is trained on, and why others are not.

Source: GPT-SoVITS `AR/data/dataset.py` (`Text2SemanticDataset`). Upstream has three faults, which
`compat` brings back: a table of codes without a header loses its first clip; one whose names are
numbers throughout, as "001", loses all; and BERT features of the wrong length end the training when
their turn comes, instead of leaving the clip out beforehand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.bert_features import bert_file, chinese_clips, read_bert_features
from mlx_vits.preprocessing.codes import CodeLine, read_code_lines
from mlx_vits.text import phonemes_to_ids

CODES_PER_SECOND = 25
EOS = 1024  # at the published size
_MOST_SECONDS = 54
_MOST_CODES = _MOST_SECONDS * CODES_PER_SECOND
_MOST_PHONEMES = int(_MOST_CODES / 2.5)
_FEWEST_RATE, _HIGHEST_RATE = 3, 25  # phonemes a second
_FEWEST_ITEMS = 100
_SHOWN, _LONGEST_SHOWN = 5, 80  # names in a sentence, characters of each

DAMAGED = "a damaged line; write the table again"
NO_TEXT = "no text in 2-name2text.txt; prepare the voice again"
NO_CODES = "no codes in 6-name2semantic.tsv; make the codes again"
NOT_TEXT = "a number for a name, with which GPT-SoVITS finds no text; rename the clip"
TOO_LONG = f"longer than {_MOST_SECONDS} s ({_MOST_CODES} codes); cut the clip in pieces"
UNKNOWN_PHONEME = "phonemes that the version lacks; prepare the voice for this version"
TOO_MANY_PHONEMES = f"more than {_MOST_PHONEMES} phonemes; cut the clip in pieces"
TOO_SLOW = f"fewer than {_FEWEST_RATE} phonemes a second; check the text, and the clip for silence"
TOO_FAST = f"more than {_HIGHEST_RATE} phonemes a second; check the text"
UNKNOWN_CODE = "codes that the GPT lacks; make the codes again with this base"
NO_BERT = "Chinese without BERT features in 3-bert; make them"
BAD_BERT = "BERT features that do not fit the phonemes; delete the files and make them again"


class T2SItem(NamedTuple):
    """A clip to train on; its BERT features, if it has any, have not been read yet.

    Attributes:
        ids: of the phonemes.
        codes: semantic codes, EOS not among them.
        has_bert: whether it has BERT features; a clip without trains with zeros.
    """

    name: str
    ids: list[int]
    codes: list[int]
    has_bert: bool = False

    @property
    def seconds(self) -> float:
        return len(self.codes) / CODES_PER_SECOND


class LeftOut(NamedTuple):
    """A clip that is not trained on.

    Attributes:
        name: of the clip, or what is wrong with a damaged line.
        reason: one of those above, with its cure.
    """

    name: str
    reason: str


class T2SRows(NamedTuple):
    """The clips of a folder, in the order of its table of codes, and those that are left out."""

    items: list[T2SItem]
    left_out: list[LeftOut]


def read_rows(folder: Path, version: str, *, eos: int = EOS, compat: bool = False) -> T2SRows:
    """Read which clips of a prepared folder can be trained on.

    Args:
        folder: prepared by this project or by GPT-SoVITS.
        version: of the phoneme symbols.
        eos: of the GPT; codes lie below it.
        compat: whether to keep the clips that upstream keeps, see above.

    Raises:
        DataError: a table is missing or damaged as a whole, or no clip is left.
    """
    left_out: list[LeftOut] = []

    def note(words: str) -> None:
        left_out.append(LeftOut(words.removeprefix(f"{folder}{os.sep}"), DAMAGED))

    texts = {
        line.name: line.phonemes for line in layout.read_text_lines(folder / layout.TEXT_FILE, note)
    }
    lines = read_code_lines(folder / layout.CODES_FILE, note, compat=compat)
    is_lost = compat and all(_is_number(line.name) for line in lines)
    chinese = set() if compat else chinese_clips(folder)
    items = []
    for line in lines:
        try:
            if is_lost:
                raise _Unfit(NOT_TEXT)
            item = _item(folder, line, texts.get(line.name), version)
            if not compat:
                _check_item(folder, item, eos, line.name in chinese)
        except _Unfit as unfit:
            left_out.append(LeftOut(line.name, unfit.reason))
        else:
            items.append(item)
    if not compat:
        with_codes = {line.name for line in lines}
        left_out += [LeftOut(name, NO_CODES) for name in texts if name not in with_codes]
    if not items:
        reasons = " ".join(count_reasons(left_out)) or "The table of codes is empty."
        raise DataError(f"{folder}: holds no clip to train the GPT on. {reasons}")
    return T2SRows(items, left_out)


def count_reasons(left_out: Iterable[LeftOut]) -> list[str]:
    """Return a sentence on each reason: how many clips are left out for it, and which."""
    names: dict[str, list[str]] = {}
    for clip in left_out:
        names.setdefault(clip.reason, []).append(clip.name)
    sentences = []
    for reason, found in names.items():
        shown = ", ".join(map(_printable, found[:_SHOWN]))
        more = ", ..." if len(found) > _SHOWN else ""
        clips = "1 clip" if len(found) == 1 else f"{len(found)} clips"
        sentences.append(f"{clips} left out ({shown}{more}): {reason}.")
    return sentences


def _printable(name: str) -> str:
    """A name from a file, fit for a terminal."""
    shown = "".join(c if c.isprintable() else "?" for c in name[:_LONGEST_SHOWN])
    return shown + ("..." if len(name) > _LONGEST_SHOWN else "")


def repeat(items: list[T2SItem]) -> list[T2SItem]:
    """The items of one epoch: fewer than 100 are repeated toward that number."""
    count = len(items)
    return list(items) if count >= _FEWEST_ITEMS else items * max(2, _FEWEST_ITEMS // count)


class _Unfit(Exception):
    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _item(folder: Path, line: CodeLine, phonemes: list[str] | None, version: str) -> T2SItem:
    """Upstream's rules; the first that a clip breaks decides."""
    if phonemes is None:
        raise _Unfit(NO_TEXT)
    if len(line.codes) > _MOST_CODES:
        raise _Unfit(TOO_LONG)
    try:
        ids = phonemes_to_ids(phonemes, version)
    except DataError as error:
        raise _Unfit(UNKNOWN_PHONEME) from error
    if len(ids) > _MOST_PHONEMES:
        raise _Unfit(TOO_MANY_PHONEMES)
    rate = len(ids) / (len(line.codes) / CODES_PER_SECOND)
    if rate < _FEWEST_RATE:
        raise _Unfit(TOO_SLOW)
    if rate > _HIGHEST_RATE:
        raise _Unfit(TOO_FAST)
    return T2SItem(line.name, ids, line.codes, bert_file(folder, line.name).is_file())


def _check_item(folder: Path, item: T2SItem, eos: int, is_chinese: bool) -> None:
    """What upstream finds out in training, or never."""
    if max(item.codes) >= eos:
        raise _Unfit(UNKNOWN_CODE)
    if not item.has_bert:
        if is_chinese:
            raise _Unfit(NO_BERT)
        return
    try:
        read_bert_features(bert_file(folder, item.name), len(item.ids))
    except DataError as error:
        raise _Unfit(BAD_BERT) from error
