"""Read transcripts: the forms that the texts of clips come in.

| file | format |
| --- | --- |
| `NAME.list` | `path|speaker|language|text`, GPT-SoVITS's; clips not listed are left out |
| `transcripts.tsv`, `NAME.tsv`, `NAME.csv` | table, with or without a header, see `tables.py` |
| `NAME.jsonl` | manifest, one object a line, such as `{"audio_filepath": ..., "text": ...}` |
| `clip.txt`, `clip.lab` | the text of the clip beside it |

Names are matched to recordings by `listed.py`; encodings are in `text_files.py`.

Source: GPT-SoVITS `prepare_datasets/1-get-text.py`, `tools/my_utils.py` (`clean_path`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mlx_vits.audio.formats import is_recording_name
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.cues import is_timed
from mlx_vits.preprocessing.languages import LANGUAGES, find_language
from mlx_vits.preprocessing.listed import Recordings
from mlx_vits.preprocessing.tables import Row, has_header, read_table
from mlx_vits.system.files import atomic_write, list_folder
from mlx_vits.system.text_files import read_text

Fault = Callable[[str], None]

TRANSCRIPTS = "transcripts.tsv"
LIST_SUFFIX = ".list"
_TABLES = (LIST_SUFFIX, ".csv")
_TABLES_OF_OTHERS = (".tsv", ".jsonl")  # only if there is none of the above
BESIDE = (".txt", ".lab")


class Transcript(NamedTuple):
    """The text of a clip.

    Attributes:
        name: of the clip's file.
        text: as written.
        language: upstream's code, None if the form states none.
        where: file and line, for messages.
        listed: the path as listed, with `/`; "" if only the name is known.
    """

    name: str
    text: str
    language: str | None
    where: str
    listed: str = ""


def find_transcripts(folder: Path) -> Path | None:
    """Return the transcript file of a folder, None if there is none.

    Raises:
        DataError: there are several.
    """
    found_here = list_folder(folder, DataError)
    files = [path for path in found_here if not path.name.startswith(".")]
    found = [path for suffix in _TABLES for path in files if path.suffix.lower() == suffix]
    found += [path for path in files if path.name.lower() == TRANSCRIPTS and path.is_file()]
    if not found:
        # A `.tsv` named after a recording is a recogniser's output for it.
        clips = {path.stem for path in files if is_recording_name(path.name)}
        found = [
            path
            for path in files
            if path.suffix.lower() in _TABLES_OF_OTHERS and path.stem not in clips
        ]
    if len(found) > 1:
        raise DataError(
            f"{folder}: holds {found[0].name} and {found[1].name}; keep one of them, or name it "
            "with --transcripts"
        )
    return found[0] if found else None


def read_transcripts(path: Path, fault: Fault | None = None) -> list[Transcript]:
    """Read a transcript file of any form.

    Args:
        fault: called with a sentence for each unusable line, which is skipped; if None, the first
            one is an error.

    Raises:
        DataError: the file cannot be read or has no usable line; without `fault` also for a
            malformed line, a clip listed twice, or a missing text.
    """
    content = read_text(path)
    if is_timed(content):
        raise DataError(
            f"{path}: holds texts with times, which a recording is cut by; put it beside the "
            "recording under the same name, and leave --transcripts out"
        )
    is_list = path.suffix.lower() == LIST_SUFFIX and _is_upstreams(content)
    found: list[Transcript] = []
    first = ""
    for row in _list_rows(path, content) if is_list else read_table(path, content):
        try:
            if isinstance(row, DataError):
                raise row
            found.append(_transcript(row, is_list))
        except DataError as error:
            if fault is None:
                raise
            fault(str(error))
            first = first or str(error)
    found = _once(found, fault)
    if not found:
        raise DataError(first or f"{path}: lists no clip; write a line for each")
    return found


def _once(rows: Iterable[Transcript], fault: Fault | None) -> list[Transcript]:
    """Keep the first of the rows that list the same path."""
    seen: dict[str, Transcript] = {}
    for row in rows:
        if row.listed in seen:
            reason = f"{row.where} lists {row.name} a second time; take one of the lines out"
            if fault is None:
                raise DataError(reason)
            fault(reason)
        seen.setdefault(row.listed, row)
    return list(seen.values())


def _transcript(row: Row, is_list: bool) -> Transcript:
    """Check a row of any form."""
    listed = _clean_path(row.file, is_list)
    name = listed.rpartition("/")[2]
    # In a list only the file name counts; in a table the path may name a sub-folder.
    if name in ("", ".", "..") or (not is_list and ".." in PurePosixPath(listed).parts):
        raise DataError(
            f"{row.where} does not name a file of the folder itself; write the file's name alone"
        )
    language = find_language(row.language) if row.language or is_list else None
    if language is None and (row.language or is_list):
        raise DataError(
            f"{row.where}: the language {row.language!r} is not one of {', '.join(LANGUAGES)}"
        )
    if not row.text:
        raise DataError(f"{row.where} gives no text for {name}; write what is said in it")
    return Transcript(name, row.text, language, row.where, listed)


def _clean_path(path: str, is_list: bool) -> str:
    """Return a path with `/`, without what Windows wraps around it; for a list, as upstream."""
    signs = " '\n\"\u202a" if is_list else ' \n"\u202a'
    return path.rstrip("/\\").strip(signs).replace("\\", "/")


def read_beside(clips: Sequence[Path], fault: Fault | None = None) -> list[Transcript]:
    """Read the `.txt` or `.lab` beside each clip; clips without one are skipped.

    Args:
        fault: called with a sentence for each unusable file; if None, the first one is an error.

    Raises:
        DataError: a file is empty or cannot be read, and `fault` is None.
    """
    beside = find_beside(clips)
    found = []
    for clip in clips:
        path = beside.get(clip)
        if path is None:
            continue
        try:
            content = read_text(path)
            if is_timed(content):
                raise DataError(
                    f"{path}: holds texts with times, by which `mlx-vits prepare {clip}` cuts the "
                    "recording; do that, or write its text alone"
                )
            text = " ".join(content.split())
            if not text:
                raise DataError(f"{path}: is empty; write what is said in {clip.name}")
        except DataError as error:
            if fault is None:
                raise
            fault(str(error))
        else:
            found.append(Transcript(clip.name, text, None, str(path), clip.as_posix()))
    return found


def find_beside(clips: Sequence[Path], suffixes: Sequence[str] = BESIDE) -> dict[Path, Path]:
    """Map recordings to their text files, names matched as in `listed.py`.

    Args:
        suffixes: of the text files, in order of preference.
    """
    found: dict[Path, Path] = {}
    for folder in sorted({clip.parent for clip in clips}):
        recordings = Recordings(clip.name for clip in clips if clip.parent == folder)
        found_here = list_folder(folder, DataError)
        texts = [path for path in found_here if path.suffix.lower() in suffixes]
        exact = {clip.stem for clip in clips if clip.parent == folder}
        texts.sort(key=lambda p: (p.stem not in exact, suffixes.index(p.suffix.lower()), p.name))
        for path in texts:
            name = recordings.find(path.stem)
            if name is not None and path.is_file():
                found.setdefault(folder / name, path)
    return found


def write_list(path: Path, rows: list[Transcript], folder: Path, speaker: str) -> None:
    """Write upstream's list file.

    Args:
        folder: of the clips.
        speaker: upstream ignores it.

    Raises:
        DataError: a text or a path contains `|` or a line break, which the format cannot hold.
        UserError: the file cannot be written.
    """
    lines = []
    for row in rows:
        if "|" in f"{folder / row.name}{row.text}" or "\n" in row.text:
            raise DataError(
                f"{row.where}: the text or the path holds `|` or a line break; take it out"
            )
        tag = (row.language or "en").upper()
        lines.append(f"{folder / row.name}|{speaker}|{tag}|{row.text}\n")
    with atomic_write(path) as file:
        file.write("".join(lines).encode())


def _is_upstreams(content: str) -> bool:
    """Whether a `.list` has upstream's four columns rather than another format."""
    lines = [line for line in content.split("\n") if line.strip()]
    if lines and has_header(lines[0]):
        return False
    widths = [line.count("|") + 1 for line in lines]
    return sum(width >= 4 for width in widths) >= max(1, widths.count(2), widths.count(3))


def _list_rows(path: Path, content: str) -> list[Row | DataError]:
    rows: list[Row | DataError] = []
    for number, line in enumerate(content.split("\n"), 1):
        where, columns = f"{path}: line {number}", line.split("|")
        if len(columns) == 4:
            rows.append(Row(where, columns[0], columns[3].strip(), columns[2].strip()))
        elif line.strip():
            more = "; take the further `|` out of its text" if len(columns) > 4 else ""
            rows.append(DataError(f"{where} is not `path|speaker|language|text`{more}"))
    return rows
