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
from mlx_vits.tools.bench.show import show
from mlx_vits.tools.bench.work import Work
from mlx_vits.training.precision import PRECISIONS


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
    output: Path,
) -> None:
    """Measures every version at every batch size.

    Raises:
        UserError: a version, comparison or precision is not known, or PyTorch is missing.
    """
    unknown = sorted(set(versions) - set(VERSIONS))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: not a version; there are {', '.join(VERSIONS)}")
    if compare not in (None, "torch"):
        raise UserError(f"--compare {compare}: only torch can be compared with")
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: is not one of {', '.join(PRECISIONS)}")
    works = [Work(version, batch, clip_seconds) for version in versions for batch in batches]
    console = Console(highlight=False)
    report = measure_all(
        works,
        repetitions=repetitions,
        warm_up=warm_up,
        compiled=compiled,
        precision=precision,
        compare=compare is not None,
        say=lambda line: console.print(f"measuring {line}"),
    )
    show(report, console)
    with atomic_write(output) as file:
        file.write(json.dumps(report, indent=1).encode() + b"\n")
    console.print(f"{output}: all of it, with machine, versions and commit")
