"""The curves that the report shows, and the explanation of each."""

from __future__ import annotations

import math
from html import escape
from typing import Any, NamedTuple

import numpy as np

from mlx_vits.report.charts import Chart, Line, Mark, draw_chart, swatch
from mlx_vits.report.curves import finite_points, number, percent, smoothing_window
from mlx_vits.report.results import RunResults
from mlx_vits.report.verdict import LEAST_LARGEST_SAMPLE, LOUDNESS_MARGIN
from mlx_vits.synthesis.scoring import FULL_SCALE

_ENDS = 20


class _Text(NamedTuple):
    """A curve's name in the log, its title and its explanation."""

    name: str
    title: str
    meaning: str


_LOSSES = (
    _Text(
        "loss_mel",
        "Mel loss",
        "How far decoded speech is from the recording in the mel spectrogram. The one to watch: it "
        "should fall, quickly at first.",
    ),
    _Text(
        "loss_fm",
        "Feature matching loss",
        "How far decoded speech is from the recording in what the discriminator sees. It should "
        "fall slowly or stay level.",
    ),
    _Text(
        "loss_kl",
        "KL loss",
        "How far the sound predicted from text and content is from the sound that was recorded. It "
        "should fall slowly or stay level.",
    ),
    _Text(
        "loss_gen",
        "Adversarial loss of the generator",
        "How well the discriminator sees through decoded speech. It should stay level; a steady "
        "rise says that the discriminator is winning.",
    ),
    _Text(
        "loss_d",
        "Loss of the discriminator",
        "How badly it tells recordings from decoded speech. It should stay level and well above 0, "
        "where nothing is left to learn from it.",
    ),
    _Text(
        "loss_total",
        "Total loss of the generator",
        "What the generator minimises: mel, feature matching, adversarial, KL and the pull below, "
        "added up. It should follow the mel loss down.",
    ),
)


def curves_section(results: RunResults) -> str:
    """Build the section's HTML: scores, losses, and what moves the weights."""
    count = len(results.losses["step"])
    window = smoothing_window(count)
    how = (
        "A thin line is every step, the thick one on top the mean over the "
        f"{window} steps around each (fewer at the ends; of logarithms where the axis is "
        f"logarithmic). The numbers above it are means of the first and the last {_ends(count)} "
        "steps; above other curves, the first and the last value."
        if window > 1
        else "Every step is shown as it was: the run is too short to smooth."
    )
    return f"""<section id="curves"><h2>Curves</h2>
<p class="note">{how}</p>
<h3>Scores</h3>
{_grid(_scores(results))}
<h3>Losses</h3>
<p class="note">Each loss is shown as weighted in the total. The codebook’s own is always 0, because
the codebook is frozen, and is left out.</p>
{_grid([_loss(results, text) for text in _LOSSES])}
<h3>What moves the weights</h3>
{_grid(_forces(results))}
</section>"""


def _grid(charts: list[Chart]) -> str:
    return f'<div class="charts">{"".join(_figure(chart) for chart in charts)}</div>'


def _figure(chart: Chart) -> str:
    shown = [line for line in chart.lines if line.kind != "faint"]
    several = len(shown) > 1
    readouts = "".join(
        f"<li>{swatch(line.colour) if several else ''}{_readout(line, several)}</li>"
        for line in shown
    )
    logged = f" <code>{escape(chart.logged)}</code>" if chart.logged else ""
    return f"""<figure class="chart"><figcaption><h4>{escape(chart.title)}{logged}</h4>
<p>{escape(chart.meaning)}</p></figcaption>
<ul class="readouts">{readouts}</ul>
{draw_chart(chart)}</figure>
"""


def _readout(line: Line, several: bool) -> str:
    """Format the first and last values of a curve."""
    values = finite_points(line.steps, line.values).y
    name = f"{escape(line.label)} " if several else ""
    if not len(values):
        return f"{name}<b>no value</b>"
    if len(values) == 1:
        return f"{name}<b>{number(values[0])}</b>{'' if several else ' at the only step'}"
    ends = _ends(len(values)) if line.kind == "noisy" else 1
    first, last = float(values[:ends].mean()), float(values[-ends:].mean())
    change = last / first - 1 if first > 0 and not several else math.inf
    # A relative change means nothing if the start is near 0.
    share = f" ({percent(change, sign=True)})" if abs(change) < 1 else ""
    return f"{name}<b>{number(first)} → {number(last)}</b>{share}"


def _ends(count: int) -> int:
    """Number of steps at either end of a run that the numbers above a curve average over."""
    return 1 if smoothing_window(count) == 1 else min(_ENDS, count // 2)


def _loss(results: RunResults, text: _Text) -> Chart:
    losses = results.losses
    line = Line(text.name, "a", losses["step"], losses[text.name])
    return Chart(text.title, text.name, text.meaning, [line])


def _scores(results: RunResults) -> list[Chart]:
    scores, base = results.scores, results.verdict["base_score"]
    clips = "held-out clips" if results.verdict["clips_are_held_out"] else "training clips"
    loudest = base["largest_sample"]
    low, high = loudest * (1 - LOUDNESS_MARGIN), loudest * (1 + LOUDNESS_MARGIN)
    margin = f"{LOUDNESS_MARGIN * 100:.0f}\u202f%"
    loudness = [
        Mark(high, f"base +{margin}", "limit"),
        Mark(loudest, "base"),
        Mark(low, f"base −{margin}", "limit"),
        Mark(LEAST_LARGEST_SAMPLE, f"least {LEAST_LARGEST_SAMPLE:,}", "least"),
    ]
    peak = results.losses["peak_fake"] * FULL_SCALE
    return [
        Chart(
            "Mel distance",
            "",
            f"Mean over the {clips}, each of them faint. It should fall: below the line the voice "
            "is nearer to the recordings than the base. Where it rises again, the run is too long.",
            _score_lines(scores, "mel_distance"),
            [Mark(base["mel_distance"], "base")],
        ),
        Chart(
            "Largest sample",
            "",
            f"Maximum over the {clips}, each of them faint, in units of {FULL_SCALE:,}. It should "
            "stay inside the band: a fine-tune that goes wrong falls silent.",
            _score_lines(scores, "largest_sample"),
            loudness,
            (max(low, LEAST_LARGEST_SAMPLE), high),
        ),
        Chart(
            "Largest sample in training",
            "peak_fake",
            f"Of the short segments that a step decodes, in units of {FULL_SCALE:,}: it depends on "
            "which were drawn. It should wander, and not sink.",
            [Line("peak_fake", "a", results.losses["step"], peak)],
        ),
    ]


def _score_lines(scores: list[dict[str, Any]], key: str) -> list[Line]:
    steps = np.array([score["step"] for score in scores], dtype=np.float64)
    values = np.array([score[key] for score in scores], dtype=np.float64)
    names = list(dict.fromkeys(clip["name"] for score in scores for clip in score["clips"]))
    faint = []
    for name in names:
        of_clip = [
            next((clip[key] for clip in score["clips"] if clip["name"] == name), np.nan)
            for score in scores
        ]
        faint.append(Line(name, "a", steps, np.array(of_clip, dtype=np.float64), "faint"))
    return [*faint, Line("", "a", steps, values, "dots")]


def _forces(results: RunResults) -> list[Chart]:
    losses = results.losses
    steps = losses["step"]
    norms = [
        Line("generator, in all", "a", steps, losses["grad_norm_g"]),
        Line("its losses", "b", steps, losses["grad_norm_task"]),
        Line("its pull to the base", "c", steps, losses["grad_norm_reg"], "plain"),
        Line("discriminator", "d", steps, losses["grad_norm_d"]),
    ]
    return [
        Chart(
            "Gradient norms",
            "grad_norm_g, _task, _reg, _d",
            "How hard each part pushes, on a logarithmic axis. They should stay within their own "
            "decade: growth without end precedes a failure. The pull matters only where it comes "
            "near the losses.",
            norms,
            log=True,
        ),
        Chart(
            "Pull to the base",
            "loss_reg",
            "Squared relative distance to the base’s weights, times its strength. It begins at 0, "
            "rises as the voice leaves the base, and should level off.",
            [Line("loss_reg", "a", steps, losses["loss_reg"], "plain")],
        ),
        Chart(
            "Learning rate",
            "lr_g, lr_d",
            "Size of an update. It shrinks a little after every epoch; the text side learns at a "
            "fixed share of the generator’s.",
            [
                Line("generator", "a", steps, losses["lr_g"], "plain"),
                Line("discriminator", "b", steps, losses["lr_d"], "plain"),
            ],
            from_zero=True,
        ),
    ]
