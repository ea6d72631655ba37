"""Tell what the columns of a table hold, by its header or by their contents.

The text column becomes speech, so an ambiguous table is refused rather than guessed at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

from mlx_vits.audio.formats import is_recording_name
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.languages import find_language

# Header names, lower case without spaces and underscores; the first one listed here wins.
_FILE = (
    *("file", "filename", "filepath", "path", "audio", "audiofile", "audiopath", "audiofilepath"),
    *("audiofilename", "wav", "wavfile", "wavpath", "wavfilename", "clip", "clippath", "id"),
)
_TEXT = (
    *("normalizedtext", "normalisedtext", "normalizedtranscription", "normalizedtranscript"),
    *("text", "sentence", "transcription", "transcript", "rawtext", "utterance"),
)
_LANGUAGE = ("language", "lang", "locale", "languageid")
_OTHER = (
    *("speaker", "speakername", "speakerid", "spk", "clientid", "duration", "length", "seconds"),
    *("gender", "emotion", "style", "split"),
)
PUNCTUATION = (";", ",")  # delimiters that also occur in texts
_NUMBER = re.compile(r"[-+]?\d[\d.,:]*\s*(s|ms|sec)?", re.IGNORECASE)
_COMPARED_ROWS = 30
_MIN_SIMILARITY = 0.6  # of a text and its normalised form


@dataclass(frozen=True)
class Columns:
    """The layout of a table.

    Attributes:
        width: number of columns.
        file, text: index of the column.
        language: index of the column, None if there is none.
        names: of all columns.
        delimiter: between columns.
    """

    width: int
    file: int
    text: int
    language: int | None
    names: tuple[str, ...]
    delimiter: str

    @property
    def form(self) -> str:
        """The format of a line, for messages."""
        return _form(self.names, self.delimiter)


def _normalize(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def is_header(cells: Sequence[str]) -> bool:
    """Whether cells name columns: two known kinds, one of them files or texts."""
    names = {_normalize(cell) for cell in cells}
    kinds = [names.intersection(kind) for kind in (_FILE, _TEXT, (*_LANGUAGE, *_OTHER))]
    return bool(kinds[0] or kinds[1]) and sum(map(bool, kinds)) > 1


def read_header(path: Path, cells: Sequence[str], delimiter: str) -> Columns | None:
    """Return the columns that a header names; None if the cells are no header.

    Raises:
        DataError: the column of files or the column of texts is missing.
    """
    if not is_header(cells):
        return None
    names = [_normalize(cell) for cell in cells]

    def find(kind: Sequence[str]) -> int | None:
        return next((names.index(name) for name in kind if name in names), None)

    file, text = find(_FILE), find(_TEXT)
    if file is None or text is None:
        what, example = ("files", "file") if file is None else ("texts", "text")
        shown = ", ".join(cell.strip() for cell in cells)
        raise DataError(
            f"{path}: none of its columns ({shown}) is known to hold {what}; call that column "
            f"`{example}`"
        )
    names = [cell.strip() for cell in cells]
    return Columns(len(cells), file, text, find(_LANGUAGE), tuple(names), delimiter)


def guess_columns(path: Path, lines: Sequence[Sequence[str]], delimiter: str) -> Columns:
    """Infer the columns of a table without a header.

    Args:
        lines: cells of each line; lines of an unusual width are ignored.

    Raises:
        DataError: the layout is ambiguous.
    """
    widths = Counter(len(cells) for cells in lines if len(cells) > 1)
    width = widths.most_common(1)[0][0] if widths else 2
    rows = [cells for cells in lines if len(cells) == width]
    columns = [[row[i].strip() for row in rows] for i in range(width)]
    files = [i for i, cells in enumerate(columns) if sum(map(is_audio, cells)) * 2 > len(cells)]
    if files and files[0] != 0:
        raise ambiguous(path, f"has its files in column {files[0] + 1}", delimiter)
    # The first line may be a header of names that are not known.
    texts = columns[-1][1:] if len(rows) > 2 else columns[-1]
    if (width > 2 and is_label(texts)) or (len(rows) > 1 and _are_numbers(texts)):
        raise ambiguous(path, "has numbers or one and the same word in its last column", delimiter)
    language = None
    if width == 2:
        names = ["file", "text"]
    elif width == 3:
        names = ["file", _middle_of_three(path, columns[1], columns[2], delimiter), "text"]
        language = 1 if names[1] == "language" else None
    elif width == 4 and are_languages(columns[2]):
        names, language = ["file", "speaker", "language", "text"], 2
    else:
        raise ambiguous(path, f"has {width} columns", delimiter)
    return Columns(width, 0, width - 1, language, tuple(names), delimiter)


def _middle_of_three(path: Path, middle: list[str], last: list[str], delimiter: str) -> str:
    """Return the name of the column between files and texts.

    Raises:
        DataError: the middle column may be the texts.
    """
    if are_languages(middle):
        return "language"
    if is_label(middle):
        return "speaker"
    if delimiter not in PUNCTUATION:
        lengths = [sum(map(len, cells)) for cells in (middle, last)]
        kinds = [len(set(cells)) for cells in (middle, last)]
        are_names = all(cell.isascii() and " " not in cell for cell in middle)
        if 2 * kinds[0] <= kinds[1] or (are_names and 2 * lengths[0] <= lengths[1]):
            return "speaker"
        if 2 * lengths[1] > lengths[0] and _are_similar(middle, last):
            return "text as written"  # as in LJ Speech, whose last column is normalised
    raise ambiguous(path, "has three columns", delimiter)


def ambiguous(path: Path, what: str, delimiter: str) -> DataError:
    """Return the error for a headerless file with more than one possible text column."""
    example = _form(("file", "text", "speaker"), delimiter)
    quotes = ", and put the texts in double quotes" if delimiter in PUNCTUATION else ""
    return DataError(
        f"{path}: {what} and no header, so it is not clear which column is the text; begin it with "
        f"a line that names the columns, such as `{example}`{quotes}"
    )


def is_label(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers, languages or one constant value, hence no texts."""
    is_constant = len(cells) > 1 and len(set(cells)) == 1
    return is_constant or _are_numbers(cells) or are_languages(cells)


def _are_similar(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    pairs = list(islice(zip(ours, theirs, strict=True), _COMPARED_ROWS))
    ratios = [SequenceMatcher(None, a.casefold(), b.casefold(), False).ratio() for a, b in pairs]
    return sum(ratios) >= _MIN_SIMILARITY * len(ratios)


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(_NUMBER.fullmatch(cell) for cell in cells)


def are_languages(cells: Sequence[str]) -> bool:
    """Whether most cells are language tags."""
    return 2 * sum(find_language(cell) is not None for cell in cells) > len(cells)


def is_audio(name: str) -> bool:
    """Whether a cell names a recording."""
    return is_recording_name(name.strip(" '\""))


def _form(names: Sequence[str], delimiter: str) -> str:
    return ("<TAB>" if delimiter == "\t" else delimiter).join(names)
