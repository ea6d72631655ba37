"""The tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval_demo.results import Comparison, Outcome, ablation_rows, compare_minutes, gather
from eval_demo.settings import BASE, RECORDING, Settings

# Measure, heading, format.
_SOUND = (
    ("mel_distance", "mel distance", ".3f"),
    ("largest_sample", "largest sample", ",.0f"),
    ("loudness", "loudness, of the base's", ".2f"),
    ("f0_correlation", "F0 correlation", ".2f"),
    ("f0_voiced_kept", "voiced frames kept", ".0%"),
    ("drift", "drift of the weights", ".2%"),
)
_HEARD = (
    ("whisper", "WER, Whisper", ".1%"),
    ("sphinx", "WER, Sphinx", ".1%"),
    ("campplus", "similarity, CAM++", ".3f"),
    ("resemblyzer", "similarity, Resemblyzer", ".3f"),
    ("ovrl", "DNSMOS OVRL", ".2f"),
    ("sig", "SIG", ".2f"),
    ("bak", "BAK", ".2f"),
    ("p808", "P.808", ".2f"),
)
_FORMATS = {name: (heading, shown) for name, heading, shown in (*_SOUND, *_HEARD)} | {
    "rms": ("loudness (root mean square)", ",.0f")
}
_SHOWN_STEPS = (0, 10, 20, 30, 50, 80, 100, 150, 200)
WORD_ERROR_MARGIN = 15.0  # points
_NONE = "–"


def write_tables(settings: Settings, output: Path) -> str:
    """All tables of what is finished so far.

    Raises:
        UserError: a result is damaged, or was made with other settings.
    """
    found = gather(settings, output)
    rows = ablation_rows(settings, found)
    devices = sorted({outcome.device for outcome in found.values() if outcome.probes})
    minute = settings.minutes[settings.ablation]
    parts = [
        f"{len(found)} of {len(settings.runs())} runs are finished; trained on: "
        f"{', '.join(devices) or 'nothing yet'}. "
        f"{len(minute.held_out)} held-out clips; of several seeds the mean, with the least and the "
        "greatest.",
        ablation_table(rows, _SOUND),
        ablation_table(rows, _HEARD),
        _word_error_margin(rows),
        probe_table(rows),
        minutes_table(compare_minutes(settings, found)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _word_error_margin(rows: dict[str, list[Outcome]]) -> str:
    """How far the base's words are from the recordings'; empty while one of them is not scored."""
    rates = [
        outcome.overall["whisper"]
        for name in (RECORDING, BASE)
        for outcome in rows.get(name, [])
        if "whisper" in outcome.overall
    ]
    if len(rates) < 2:
        return ""
    points = 100 * (rates[1] - rates[0])
    met = "met" if points <= WORD_ERROR_MARGIN else "NOT met"
    return (
        f"By Whisper, the base's word error rate is {points:.1f} points above the recordings'; at "
        f"most {WORD_ERROR_MARGIN:g} are asked for: {met}."
    )


def ablation_table(rows: dict[str, list[Outcome]], columns: Sequence[tuple[str, str, str]]) -> str:
    """A row for the recordings, the base and each cell; a column for each measure.

    Args:
        rows: outcomes of a row's seeds, from `ablation_rows`.
        columns: measure, heading and format of each.
    """
    lines = []
    for name, outcomes in rows.items():
        broken = [outcome.stopped for outcome in outcomes if outcome.stopped]
        cells = [
            _spread([o.overall[measure] for o in outcomes if measure in o.overall], shown)
            for measure, _, shown in columns
        ]
        note = f" ({len(broken)} of {len(outcomes)} broke off: {broken[0]})" if broken else ""
        lines.append([_row_name(name) + note, str(len(outcomes) - len(broken)), *cells])
    headings = ["run", "seeds", *(heading for _, heading, _ in columns)]
    for line in lines:
        if line[0] in (RECORDING, BASE):
            line[1] = _NONE
    return _markdown(headings, lines)


def probe_table(rows: dict[str, list[Outcome]]) -> str:
    """Largest sample and loudness while a cell is trained: "largest / of step 0's loudness"."""
    trained = {
        name: [outcome.probes for outcome in outcomes if outcome.probes]
        for name, outcomes in rows.items()
    }
    trained = {name: probes for name, probes in trained.items() if probes}
    steps = sorted({probe["step"] for runs in trained.values() for run in runs for probe in run})
    shown = [step for step in steps if step in _SHOWN_STEPS]
    lines = []
    for name, runs in trained.items():
        cells = []
        for step in shown:
            pairs = [
                (probe["largest_sample"], probe["rms"] / run[0]["rms"])
                for run in runs
                for probe in run
                if probe["step"] == step
            ]
            cells.append(_probe_cell(pairs))
        lines.append([_row_name(name), *cells])
    return _markdown(["run", *(f"step {step:g}" for step in shown)], lines) if lines else ""


def _probe_cell(pairs: list[tuple[float, float]]) -> str:
    if not pairs:
        return _NONE
    peaks, ratios = (sum(values) / len(values) for values in zip(*pairs, strict=True))
    return f"{peaks:,.0f} / {ratios:.2f}"


def minutes_table(comparisons: list[Comparison]) -> str:
    """Fine-tuned against base, a line for each minute and measure."""
    lines = []
    for minute, measure, base, tuned, change, is_met in comparisons:
        heading, shown = _FORMATS[measure]
        difference = _NONE
        if change is not None:
            ends = (_signed(value, shown) for value in change)
            difference = "{} [{}, {}]".format(*ends)
        met = {True: "yes", False: "NO", None: _NONE}[is_met]
        numbers = [format(value, shown) for value in (base, tuned)]
        lines.append([minute, heading, *numbers, difference, met])
    headings = ["minute", "measure", "base", "fine-tuned", "difference [95 % interval]", "met"]
    return _markdown(headings, lines) if lines else ""


def _signed(value: float, shown: str) -> str:
    return format(value, "+" + shown)


def _row_name(name: str) -> str:
    return name if name in (RECORDING, BASE) else f"`{name}`"


def _spread(values: list[float], shown: str) -> str:
    """The mean, and of several values their ends."""
    if not values:
        return _NONE
    mean = format(sum(values) / len(values), shown)
    if len(values) == 1:
        return mean
    return f"{mean} ({format(min(values), shown)} to {format(max(values), shown)})"


def _markdown(headings: list[str], lines: list[list[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
