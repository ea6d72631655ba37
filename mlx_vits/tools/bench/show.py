"""A benchmark's results: tables for a terminal, and one to paste into a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_LABELS = {
    "forward_g": "generator forward",
    "step_d": "discriminator step",
    "step_g": "generator step",
    "step": "whole step",
    "synthesis": "synthesis",
}


def show(report: dict[str, Any], console: Console) -> None:
    """Print one table for each size of a report of `measure_all`."""
    machine, ceiling = report["machine"], report["ceiling"]
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['device']}, "
        f"BLAS {machine['blas']}, mlx {machine['versions']['mlx']}, "
        f"{'compiled' if report['compiled'] else 'not compiled'}, precision {report['precision']}"
    )
    console.print(f"matrix product: {ceiling / 1e9:,.0f} GFLOP/s, the ceiling of the rates")
    for result in report["results"]:
        console.print(_table(result, ceiling, report["repetitions"]))
    if any("torch" in result for result in report["results"]):
        console.print(
            "PyTorch's twin leaves out the text side and the style encoder. Other programs on "
            "the same cores slow its threads more than ours: compare on a machine at rest."
        )


def _table(result: dict[str, Any], ceiling: float, repetitions: int) -> Table:
    work, ours, torch = result["work"], result["mlx"], result.get("torch")
    title = (
        f"{work['version']}, batch {work['batch_size']}, clips of {result['clip_seconds']:.2f} s, "
        f"arrays of {ours['peak_bytes'] / 1e9:.2f} GB, medians of {repetitions}"
    )
    if torch:
        kind = "arrays" if torch["device"] == "cuda" else "a process"
        title += f"; PyTorch {torch['torch']}, {kind} of {torch['peak_bytes'] / 1e9:.2f} GB"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("seconds", "audio s / s", "GFLOP", "GFLOP/s", "of ceiling", "kernels"):
        table.add_column(name, justify="right")
    if torch:
        table.add_column("PyTorch s", justify="right")
        table.add_column("ratio", justify="right")
    for part, label in _LABELS.items():
        kernels = result["kernels"].get(part)
        rate, speed = ours["rates"][part], ours["audio_seconds_per_second"].get(part)
        cells = [
            label,
            f"{ours['seconds'][part]:.3f}",
            "" if speed is None else f"{speed:.2f}",
            f"{result['operations'][part] / 1e9:.1f}",
            f"{rate / 1e9:,.0f}",
            f"{rate / ceiling:.0%}",
            "" if kernels is None else f"{kernels['kernels']:,}",
        ]
        if torch:
            cells += [f"{torch['seconds'][part]:.3f}", f"{result['ratios'][part]:.2f}"]
        table.add_row(*cells, style="bold" if part == "step" else None)
    return table


def show_speech(report: dict[str, Any], console: Console) -> None:
    """Print the table of a report of `measure_speech`."""
    work, ours, torch = report["work"], report["mlx"], report.get("torch")
    machine, seconds = report["machine"], work["codes"] / 25
    title = (
        f"{work['version']}: a text and a prompt of {work['phonemes']} phonemes and "
        f"{work['prompt']} codes, {work['codes']} codes drawn; arrays of "
        f"{ours['peak_bytes'] / 1e9:.2f} GB, medians of {report['repetitions']}"
    )
    if torch:
        title += f"; PyTorch {torch['torch']}, {torch['peak_bytes'] / 1e9:.2f} GB"
    table = Table(title=title, title_justify="left")
    table.add_column(f"{machine['processor']}, {machine['device']}, mlx {_mlx(machine)}")
    for name in ("seconds", "codes / s", *(("PyTorch s", "ratio") if torch else ())):
        table.add_column(name, justify="right")
    labels = {
        "prefill": "text and prompt read",
        "codes": "codes of a sentence",
        "together": f"codes of {work['together']} sentences at once",
        "codes_8bit": "codes of a sentence, weights of 8 bits",
        "first": "first sound of a stream",
        "sentence": f"a sentence of {seconds:.0f} s, from phonemes to sound",
    }
    for part, label in labels.items():
        if part not in ours["seconds"]:
            continue
        rate = ours["codes_per_second"].get(part)
        cells = [label, f"{ours['seconds'][part]:.3f}", "" if rate is None else f"{rate:,.1f}"]
        if torch and part in torch["seconds"]:
            cells += [f"{torch['seconds'][part]:.3f}", f"{report['ratios'][part]:.2f}"]
        table.add_row(*cells, style="bold" if part == "sentence" else None)
    console.print(table)
    console.print(f"real-time factor: {ours['real_time_factor']:.3f} (below 1: faster than speech)")


def _mlx(machine: dict[str, Any]) -> str:
    return str(machine["versions"]["mlx"])


def table_to_share(reports: Sequence[dict[str, Any]], sizes: Sequence[int]) -> str:
    """Make a Markdown table with a row for each report.

    Args:
        reports: of one machine and one length of clips.
        sizes: batch sizes to be shown; one that a report lacks is a dash there.
    """
    of_sizes = [f"step of {size}, s" for size in sizes]
    columns = ["chip", "memory, GB", "system", "MLX", "compiled", "precision", *of_sizes]
    columns += ["synthesis, s", "real-time factor", *(f"peak of {size}, GB" for size in sizes)]
    rows = [columns, ["---"] * len(columns), *(_row(report, sizes) for report in reports)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(report: dict[str, Any], sizes: Sequence[int]) -> list[str]:
    machine = report["machine"]
    found = {result["work"]["batch_size"]: result["mlx"] for result in report["results"]}
    synthesis, factor = "-", "-"
    if found:
        ours = found[min(found)]
        synthesis = f"{ours['seconds']['synthesis']:.3f}"
        factor = f"{1 / ours['audio_seconds_per_second']['synthesis']:.3f}"
    return [
        machine["device_name"] or machine["processor"],
        f"{machine['memory_bytes'] / 2**30:.0f}",
        machine["system"],
        machine["versions"]["mlx"],
        "yes" if report["compiled"] else "no",
        report["precision"],
        *(f"{found[n]['seconds']['step']:.3f}" if n in found else "-" for n in sizes),
        synthesis,
        factor,
        *(f"{found[n]['peak_bytes'] / 1e9:.2f}" if n in found else "-" for n in sizes),
    ]
