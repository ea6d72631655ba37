"""`python -m eval_demo`, with the folder `scripts` on Python's path."""

from __future__ import annotations

import math
from pathlib import Path

import mlx_vits  # noqa: F401  (chooses the BLAS before mlx is imported)
import typer

from eval_demo.pictures import draw_pictures
from eval_demo.runs import perform_runs
from eval_demo.scores import TOOLS, score_runs
from eval_demo.settings import CONFIG, Run, Settings, check_frozen, freeze, read_settings
from eval_demo.tables import write_tables
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write
from mlx_vits.report.terminal import report_errors

app = typer.Typer(
    help="Evaluates the demo's base and what a fine-tune makes of it.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
VOICES = typer.Option(..., help="Folder of voices: ljspeech, kokoro.")
OUTPUT = typer.Option(Path("runs/eval_demo"), help="Folder of everything that is made.")
ONLY = typer.Option([], help="Runs whose name holds this; may be repeated.")
PART = typer.Option("1/1", help="Which of how many parts, to share the work: 1/2 and 2/2.")
SETTINGS = typer.Option(CONFIG, "--config", help="The settings.")


def _say(text: str) -> None:
    print(text, flush=True)


@app.command("freeze")
@report_errors
def freeze_command(
    voices: Path = VOICES,
    config: Path = SETTINGS,
    again: bool = typer.Option(False, "--again", help="Replace what was frozen before."),
) -> None:
    """Write the SHA-256 of the base and of the clips into the settings, once."""
    settings = freeze(read_settings(config), voices, again=again)
    for name, digest in settings.base_sha256.items():
        _say(f"{digest}  {name}")


@app.command("run")
@report_errors
def run_command(
    voices: Path = VOICES,
    output: Path = OUTPUT,
    config: Path = SETTINGS,
    only: list[str] = ONLY,
    part: str = PART,
    seconds: float = typer.Option(math.inf, help="Begin no further run after so many."),
) -> None:
    """Train and speak what is not done yet. Needs no recogniser."""
    settings = read_settings(config)
    check_frozen(settings, voices)
    perform_runs(settings, voices, output, _chosen(settings, only, part), _say, seconds)


@app.command("score")
@report_errors
def score_command(
    output: Path = OUTPUT,
    config: Path = SETTINGS,
    only: list[str] = ONLY,
    tool: list[str] = typer.Option(TOOLS, help="By which tools; may be repeated."),
    part: str = PART,
) -> None:
    """Have what was spoken heard and judged, as far as that is not done yet."""
    settings = read_settings(config)
    check_frozen(settings)
    score_runs(settings, output, _chosen(settings, only, part), tuple(tool), _say)


@app.command("table")
@report_errors
def table_command(
    output: Path = OUTPUT,
    config: Path = SETTINGS,
    pictures: bool = typer.Option(True, help="Draw the pictures as well."),
) -> None:
    """Print the tables of what is done, and keep them as table.md beside the pictures."""
    settings = read_settings(config)
    check_frozen(settings)
    tables = write_tables(settings, output)
    with atomic_write(output / "table.md") as file:
        file.write(tables.encode())
    _say(tables)
    for path in draw_pictures(settings, output) if pictures else ():
        _say(str(path))


def _chosen(settings: Settings, only: list[str], part: str) -> list[Run]:
    runs = [run for run in settings.runs() if not only or any(o in run.name for o in only)]
    number, parts = _part(part)
    return runs[number - 1 :: parts]


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise UserError(f"--part {text}: is not like 1/2; give the number and the count of parts")
    return int(number), int(parts)


if __name__ == "__main__":
    app()
