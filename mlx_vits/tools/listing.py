"""`mlx-vits list`: which bases, prepared voices and runs there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

from rich.console import Console
from rich.table import Table

from mlx_vits.checkpoints.base import find_base, weights_home
from mlx_vits.checkpoints.run_info import RUNS, RunInfo, is_run
from mlx_vits.errors import DataError, UserError
from mlx_vits.finetune.data import PREPARED, VOICES
from mlx_vits.preprocessing.prepared import is_prepared, read_manifest
from mlx_vits.report.results import VERDICT
from mlx_vits.system.json_files import read_json


class Entry(NamedTuple):
    """One line: a name to give to other commands, and what is known of it."""

    kind: str
    name: str
    words: str


class _Verdict(TypedDict):
    verdict: str


def list_all() -> None:
    """Print them.

    Raises:
        UserError: there is nothing.
    """
    entries = [*_bases(), *_voices(), *_runs()]
    if not entries:
        raise UserError(
            f"there is no base in {weights_home()}, no voice in {VOICES}/ and no run in {RUNS}/; "
            "`mlx-vits download v2` fetches a base"
        )
    table = Table(box=None, pad_edge=False, show_header=False)
    for entry in entries:
        table.add_row(*entry)
    Console(highlight=False).print(table)


def _bases() -> Iterator[Entry]:
    for folder in _folders(weights_home()):
        try:
            base = find_base(folder.name)
            version = base.read_generator().config.version
        except UserError:
            continue  # a part of bases, such as BERT
        speaks = "" if base.gpt is None else ", speaks texts"
        yield Entry("base", folder.name, f"{version}{speaks}")


def _voices() -> Iterator[Entry]:
    for folder in _folders(VOICES):
        prepared = folder / PREPARED
        if not is_prepared(prepared):
            yield Entry("voice", folder.name, "not prepared to its end")
            continue
        manifest = read_manifest(prepared)
        sources = manifest.sources if manifest else ()
        seconds = sum(clip.seconds for clip in sources)
        yield Entry("voice", folder.name, f"{len(sources)} clips, {seconds:.0f} s")


def _runs() -> Iterator[Entry]:
    for folder in _folders(RUNS):
        if is_run(folder):
            yield Entry("run", folder.name, _verdict_of(folder))


def _verdict_of(run: Path) -> str:
    try:
        base = RunInfo.read(run).base
        if not (run / VERDICT).is_file():
            return f"from {base}; not finished: `python -m mlx_vits.train --resume {run}`"
        cure = f"make it again with --resume {run}"
        verdict = read_json(run / VERDICT, _Verdict, error=DataError, cure=cure)
    except UserError as error:
        return str(error)
    return f"from {base}; {verdict['verdict']}"


def _folders(place: Path) -> list[Path]:
    """The folders within one that are not hidden, by name; none where it does not exist."""
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if path.is_dir() and path.name[0] != ".")
