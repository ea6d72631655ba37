"""Read tables of clips and texts; the columns are determined once for the whole file.

| columns | meaning without a header |
| --- | --- |
| 2 | file, text |
| 3 | file, speaker or language, text; or LJ Speech's file, text, normalised text |
| 4 | file, speaker, language, text |

The delimiter is a tab, `|`, `;` or a comma, whatever the file's suffix. A text may contain unquoted
commas if a space follows each. JSON manifests (one object a line, or an array of objects) are
tables whose keys are the header. Anything ambiguous is refused, see `columns.py`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.preprocessing.columns import (
    PUNCTUATION,
    Columns,
    ambiguous,
    are_languages,
    guess_columns,
    is_audio,
    is_header,
    is_label,
    read_header,
)

_SAMPLED_LINES = 200
_DELIMITERS = ("\t", "|", ";", ",")


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        where: file and line, for messages.
        file: as written.
        text: without surrounding space.
        language: as written, "" if the table states none.
    """

    where: str
    file: str
    text: str
    language: str


class _Line(NamedTuple):
    where: str
    cells: list[str]
    is_cut: bool = False  # ends inside a quoted cell


def read_table(path: Path, content: str) -> list[Row | DataError]:
    """Read a table; an unusable line is returned as its error.

    Raises:
        DataError: the columns of the file are ambiguous.
    """
    if re.match(r"\s*(\{|\[\s*\{)", content):
        return _read_json(path, content)
    delimiter = _find_delimiter(path, content)
    lines = _split_lines(path, content, delimiter)
    if not lines:
        return []
    columns = read_header(path, lines[0].cells, delimiter)
    if columns is not None:
        del lines[0]
        if delimiter in PUNCTUATION and columns.text == columns.width - 1:
            lines = [_joined(line, columns.width, delimiter) for line in lines]
    else:
        lines = _join_texts(path, lines, delimiter)
        columns = guess_columns(path, [line.cells for line in lines], delimiter)
    return [_row(line, columns) for line in lines]


def has_header(line: str) -> bool:
    """Whether a line names columns, with any delimiter."""
    return any(is_header(_split(line, delimiter)) for delimiter in _DELIMITERS)


def _row(line: _Line, columns: Columns) -> Row | DataError:
    cells = line.cells
    if line.is_cut:
        return DataError(f"{line.where} opens a quotation mark that is not closed; close it")
    if len(cells) != columns.width:
        cure = "put its text in double quotes"
        if columns.delimiter not in PUNCTUATION:
            cure = (
                f"take the further {'`|`' if columns.delimiter == '|' else 'tab'} out of its text"
            )
        more = f"; {cure}" if len(cells) > columns.width else ""
        return DataError(f"{line.where} is not `{columns.form}`{more}")
    text = " ".join(cells[columns.text].strip().split("\n"))
    language = cells[columns.language].strip() if columns.language is not None else ""
    return Row(line.where, cells[columns.file], text, language)


def _find_delimiter(path: Path, content: str) -> str:
    lines = [line for line in content.split("\n") if line.strip()][:_SAMPLED_LINES]
    for delimiter in _DELIMITERS if lines else ():
        if is_header(_split(lines[0], delimiter)):
            return delimiter

    def names_files(delimiter: str) -> int:
        return sum(is_audio(_split(line, delimiter)[0]) for line in lines if delimiter in line)

    likely = max(_DELIMITERS, key=names_files)
    if names_files(likely) * 2 >= max(1, len(lines)):
        return likely
    for delimiter in _DELIMITERS if lines else ():  # names without a suffix, such as LJ Speech's
        if sum(len(_split(line, delimiter)) > 1 for line in lines) * 2 >= len(lines):
            return delimiter
    return {".list": "|", ".csv": ","}.get(path.suffix.lower(), "\t")


def _split_lines(path: Path, content: str, delimiter: str) -> list[_Line]:
    lines = _split_quoted(path, content, delimiter) or _split_plain(path, content, delimiter)
    # Spreadsheets end lines with the delimiters of empty columns.
    width = max((_filled(line.cells) for line in lines), default=0)
    return [line._replace(cells=line.cells[: max(width, 2)]) for line in lines]


def _filled(cells: list[str]) -> int:
    return max((i for i, cell in enumerate(cells, 1) if cell.strip()), default=0)


def _split_quoted(path: Path, content: str, delimiter: str) -> list[_Line]:
    """Split a file that follows the CSV quoting rules throughout; empty for any other.

    A quoted cell may span lines, unless these look like rows: then a quote was never closed.
    """
    reader = csv.reader(io.StringIO(content, newline="\n"), delimiter=delimiter, strict=True)
    lines = []
    try:
        for cells in reader:
            if any(_holds_rows(cell, delimiter) for cell in cells):
                return []
            if any(cell.strip() for cell in cells):
                lines.append(_Line(f"{path}: line {reader.line_num}", cells))
    except csv.Error:
        return []
    return lines


def _holds_rows(cell: str, delimiter: str) -> bool:
    rows = [line for line in cell.split("\n")[1:] if delimiter in line]
    return any(delimiter not in PUNCTUATION or is_audio(_split(row, delimiter)[0]) for row in rows)


def _split_plain(path: Path, content: str, delimiter: str) -> list[_Line]:
    found = []
    lines = content.split("\n")
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True), 1):
        if line.strip():
            # An unmatched quote is common in texts, but a quoted cell may also span lines.
            may_continue = delimiter in PUNCTUATION or (
                following.strip() and delimiter not in following
            )
            is_cut = bool(may_continue and f'{delimiter}"' in line and line.count('"') % 2)
            found.append(_Line(f"{path}: line {number}", _split(line, delimiter), is_cut))
    return found


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [""])
    except csv.Error:  # a quote inside a text
        cells = line.split(delimiter)
        if delimiter in PUNCTUATION:  # pieces of a text, to be rejoined unchanged
            return [_unquoted(cells[0]), *cells[1:]]
        return [_unquoted(cell) for cell in cells]


def _unquoted(cell: str) -> str:
    """Remove a cell's CSV quotes; other quotes belong to the text."""
    inner = cell.strip()[1:-1]
    if cell.strip() == f'"{inner}"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _join_texts(path: Path, lines: list[_Line], delimiter: str) -> list[_Line]:
    """Rejoin texts that were split at their own commas.

    Raises:
        DataError: the extra cells may be columns of their own.
    """
    wide = [line.cells for line in lines if len(line.cells) > 2]
    if delimiter not in PUNCTUATION or not wide:
        return lines
    spaced = [_is_spaced(cells) for cells in wide]
    if len({len(line.cells) for line in lines}) == 1:  # it may really have that many columns
        middle = [cells[1].strip() for cells in wide]
        is_label_there = is_label(middle) or (
            len(wide[0]) == 4 and are_languages([c[2] for c in wide])
        )
        if is_label_there and not any(spaced):
            return lines
        if is_label_there or not all(spaced) or all(cells[1][:1] == " " for cells in wide):
            raise ambiguous(path, f"has {len(wide[0])} columns", delimiter)
    if is_label([cells[-1].strip() for cells in wide]):
        raise ambiguous(path, "has numbers or one and the same word in its last column", delimiter)
    return [_joined(line, 2, delimiter) if _is_spaced(line.cells) else line for line in lines]


def _is_spaced(cells: Sequence[str]) -> bool:
    """Whether a space or a quote follows each delimiter after the first, as in a sentence."""
    return all(cell[:1] in (" ", '"', "") for cell in cells[2:])


def _joined(line: _Line, width: int, delimiter: str) -> _Line:
    """Return the line with its excess cells joined into the last column."""
    cells = line.cells
    if len(cells) <= width:
        return line
    last = _unquoted(delimiter.join(cells[width - 1 :]))
    return line._replace(cells=[*cells[: width - 1], last])


def _read_json(path: Path, content: str) -> list[Row | DataError]:
    """Read the rows of a manifest whose keys name the columns."""
    rows: list[Row | DataError] = []
    for where, value in _json_values(path, content):
        if not isinstance(value, dict):
            rows.append(DataError(f"{where} is not a JSON object"))
            continue
        columns = read_header(path, list(value), ", ")
        if columns is None:
            known = ", ".join(value)
            rows.append(DataError(f"{where} has no `file` and `text` among its keys ({known})"))
            continue
        cells = ["" if cell is None else str(cell) for cell in value.values()]
        rows.append(_row(_Line(where, cells), columns))
    return rows


def _json_values(path: Path, content: str) -> list[tuple[str, object]]:
    """Return each entry with its place for messages; None for a line that is not JSON."""
    if content.lstrip().startswith("["):
        try:
            return [(f"{path}: entry {n}", value) for n, value in enumerate(json.loads(content), 1)]
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is not JSON ({error}); write it again") from error
    values: list[tuple[str, object]] = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                value: object = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            values.append((f"{path}: line {number}", value))
    return values
