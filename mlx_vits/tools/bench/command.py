"""`mlx-vits bench`: measure, show, and write the JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlx_vits.config import VERSIONS
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write
from mlx_vits.tools.bench.measure import measure_all
from mlx_vits.tools.bench.show import show, show_speech, table_to_share
from mlx_vits.tools.bench.speech import SpeechWork, measure_speech
from mlx_vits.tools.bench.work import Work
from mlx_vits.training.precision import PRECISIONS

SHARED_BATCHES, SHARED_PRECISIONS = (1, 2, 4), ("fp32", "bf16")


def bench_speech(
    versions: Sequence[str], *, repetitions: int, warm_up: int, compare: str | None, output: Path
) -> None:
    """Measure how fast every version speaks.

    Raises:
        UserError: as of `bench`.
    """
    _check(versions, compare)
    console, reports = Console(highlight=False), []
    for version in versions:
        console.print(f"measuring speech of {version}")
        report = measure_speech(
            SpeechWork(version),
            repetitions=repetitions,
            warm_up=warm_up,
            compare=compare is not None,
        )
        show_speech(report, console)
        reports.append(report)
    with atomic_write(output) as file:
        file.write(json.dumps(reports, indent=1).encode() + b"\n")
    console.print(f"{output}: all of it, with machine, versions and commit")


def _check(versions: Sequence[str], compare: str | None) -> None:
    unknown = sorted(set(versions) - set(VERSIONS))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: not a version; there are {', '.join(VERSIONS)}")
    if compare not in (None, "torch"):
        raise UserError(f"--compare {compare}: only torch can be compared with")


def bench(
    versions: Sequence[str],
    batches: Sequence[int],
    clip_seconds: float,
    *,
    repetitions: int,
    warm_up: int = 1,
    compare: str | None,
    compiled: bool | None,
    precision: str = "auto",
    share: bool = False,
    output: Path,
) -> None:
    """Measure every version at every batch size.

    Args:
        share: measure the first version at `SHARED_BATCHES` in `SHARED_PRECISIONS` instead, leave
            out what memory has no room for, and print a table to paste.

    Raises:
        UserError: a version, comparison or precision is not known, or PyTorch is missing.
    """
    _check(versions, compare)
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: is not one of {', '.join(PRECISIONS)}")
    if share:
        versions, batches = versions[:1], SHARED_BATCHES
    works = [Work(version, batch, clip_seconds) for version in versions for batch in batches]
    console, reports = Console(highlight=False), []
    for one in SHARED_PRECISIONS if share else (precision,):
        report = measure_all(
            works,
            repetitions=repetitions,
            warm_up=warm_up,
            compiled=compiled,
            precision=one,
            compare=compare is not None,
            skip_too_large=share,
            say=lambda line: console.print(f"measuring {line}"),
        )
        show(report, console)
        reports.append(report)
    with atomic_write(output) as file:
        file.write(json.dumps(reports if share else reports[0], indent=1).encode() + b"\n")
    console.print(f"{output}: all of it, with machine, versions and commit")
    if share:
        seconds = f"{works[0].version}, clips and synthesis of {works[0].seconds:.2f} s"
        print(f"\n{seconds}; to paste:\n\n{table_to_share(reports, batches)}")
