"""What is said in each clip: the forms that transcripts come in.

| file | a line |
| --- | --- |
| `NAME.list` | `path|speaker|language|text`, GPT-SoVITS's own |
| `transcripts.tsv` | `file<TAB>text`; a speaker may stand between |
| `NAME.csv` | `file,text` or LJ Speech's `file|text|normalised text` without a header |
| `clip.txt`, `clip.lab` | beside each clip: its text |

Source: GPT-SoVITS `prepare_datasets/1-get-text.py`, `tools/my_utils.py` (`clean_path`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.files import atomic_write, read_utf8

Fault = Callable[[str], None]

TRANSCRIPTS = "transcripts.tsv"
LIST_SUFFIX, CSV_SUFFIX = ".list", ".csv"
BESIDE = (".txt", ".lab")
# Upstream's tags; any other is skipped there with a warning, and refused here.
LANGUAGES = {
    "zh": "zh",
    "jp": "ja",
    "ja": "ja",
    "en": "en",
    "ko": "ko",
    "yue": "yue",
}


class Transcript(NamedTuple):
    """What is said in a clip.

    Attributes:
        name: of the clip's file.
        text: as it stands.
        language: upstream's code, None where the form has none.
        where: file and line, for messages.
    """

    name: str
    text: str
    language: str | None
    where: str


def find_transcripts(folder: Path) -> Path | None:
    """The one transcript file of a folder: a `.list`, `transcripts.tsv` or a `.csv`.

    Raises:
        DataError: there are several, so that it is not clear which counts.
    """
    found = sorted(folder.glob(f"*{LIST_SUFFIX}")) + sorted(folder.glob(f"*{CSV_SUFFIX}"))
    if (folder / TRANSCRIPTS).is_file():
        found.append(folder / TRANSCRIPTS)
    found = [path for path in found if not path.name.startswith(".")]
    if len(found) > 1:
        raise DataError(
            f"{folder}: holds {found[0].name} and {found[1].name}; keep one of them, or name it "
            "with --transcripts"
        )
    return found[0] if found else None


def read_transcripts(path: Path, fault: Fault | None = None) -> list[Transcript]:
    """Reads a transcript file of any form, by its ending.

    Args:
        fault: called with the sentence on each line that cannot be used, which is then left out;
            where not given, the first such line is an error.

    Raises:
        DataError: it cannot be read, or no line can be used; without `fault` also a line of another
            form, a clip that is listed twice, or a missing text. The line is named.
    """
    content = read_text(path)
    parsers: list[Callable[[], Transcript]]
    if path.suffix.lower() == LIST_SUFFIX:
        parsers = [partial(_list_row, path, n, line) for n, line in _lines(content)]
    elif path.suffix.lower() == CSV_SUFFIX:
        parsers = _csv_parsers(path, content)
    else:
        parsers = [partial(_tsv_row, path, n, line) for n, line in _lines(content)]
    rows: dict[str, Transcript] = {}
    first = ""
    for parse in parsers:
        try:
            row = _checked(parse(), rows)
        except DataError as error:
            if fault is None:
                raise
            fault(str(error))
            first = first or str(error)
        else:
            rows[row.name] = row
    if not rows:
        raise DataError(first or f"{path}: lists no clip; write a line for each")
    return list(rows.values())


def _checked(row: Transcript, before: Mapping[str, Transcript]) -> Transcript:
    if not row.name or row.name in (".", ".."):
        raise DataError(f"{row.where} does not name a file of the folder itself")
    if not row.text:
        raise DataError(f"{row.where} gives no text for {row.name}")
    if row.name in before:
        raise DataError(f"{row.where} lists {row.name} a second time")
    return row


def read_beside(clips: list[Path], fault: Fault | None = None) -> list[Transcript]:
    """Texts from the `.txt` or `.lab` beside each clip; clips without one are left out.

    Args:
        fault: called with the sentence on each file that cannot be used; where not given, the
            first is an error.

    Raises:
        DataError: a file is empty or cannot be read, and there is no `fault`.
    """
    found = []
    for clip in clips:
        beside = [clip.with_suffix(suffix) for suffix in BESIDE]
        path = next((path for path in beside if path.is_file()), None)
        if path is None:
            continue
        try:
            text = " ".join(read_text(path).split())
            if not text:
                raise DataError(f"{path}: is empty; write what is said in {clip.name}")
        except DataError as error:
            if fault is None:
                raise
            fault(str(error))
        else:
            found.append(Transcript(clip.name, text, None, str(path)))
    return found


def write_list(path: Path, rows: list[Transcript], folder: Path, speaker: str) -> None:
    """Writes upstream's list file.

    Args:
        folder: where the clips lie.
        speaker: upstream ignores it.

    Raises:
        DataError: a text holds `|`, which the form has no place for.
        UserError: the file cannot be written.
    """
    lines = []
    for row in rows:
        if "|" in row.text or "\n" in row.text:
            raise DataError(f"{row.where}: the text holds `|` or a line break; take it out")
        tag = (row.language or "en").upper()
        lines.append(f"{folder / row.name}|{speaker}|{tag}|{row.text}\n")
    with atomic_write(path) as file:
        file.write("".join(lines).encode())


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        DataError: it is missing or not UTF-8.
    """
    try:
        return read_utf8(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text; save it again as UTF-8") from error


def _lines(content: str) -> list[tuple[int, str]]:
    return [(n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]


def _list_row(path: Path, number: int, line: str) -> Transcript:
    where, columns = f"{path}: line {number}", line.split("|")
    if len(columns) != 4:
        raise DataError(f"{where} is not `path|speaker|language|text`")
    language = LANGUAGES.get(columns[2].strip().lower())
    if language is None:
        raise DataError(
            f"{where}: the language {columns[2].strip()!r} is not one of {', '.join(LANGUAGES)}"
        )
    return Transcript(_clean_name(columns[0]), columns[3].strip(), language, where)


def _clean_name(path: str) -> str:
    """The file's name in a path as upstream cleans it, of any system."""
    cleaned = path.rstrip("/\\").strip(" '\n\"\u202a")
    return cleaned.replace("\\", "/").rpartition("/")[2]


def _tsv_row(path: Path, number: int, line: str) -> Transcript:
    where, columns = f"{path}: line {number}", line.split("\t")
    if len(columns) not in (2, 3):
        raise DataError(f"{where} is not `file<TAB>text`")
    return _plain_row(columns[0], columns[-1], where)


def _plain_row(name: str, text: str, where: str) -> Transcript:
    name = name.strip()
    if Path(name).name != name:
        raise DataError(f"{where} does not name a file of the folder itself")
    return Transcript(name, text.strip(), None, where)


def _csv_parsers(path: Path, content: str) -> list[Callable[[], Transcript]]:
    """What reads each line that is not empty.

    Raises:
        DataError: the file is not CSV.
    """
    if "|" in re.sub(r'"[^"]*"', "", content.partition("\n")[0]):
        delimiter = "|"
        reader = csv.reader(io.StringIO(content), delimiter="|", quoting=csv.QUOTE_NONE)
    else:
        delimiter = ","
        reader = csv.reader(io.StringIO(content))
    try:
        return [
            partial(_csv_row, columns, delimiter, f"{path}: line {reader.line_num}")
            for columns in reader
            if any(column.strip() for column in columns)
        ]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not CSV ({error})") from error


def _csv_row(columns: list[str], delimiter: str, where: str) -> Transcript:
    if len(columns) not in (2, 3):
        raise DataError(f"{where} is not `file{delimiter}text`")
    # The last of three is LJ Speech's normalised text.
    return _plain_row(columns[0], columns[-1], where)
