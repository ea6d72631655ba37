"""The curves that the report shows, and the explanation of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlx_vits.report.charts import Chart, Line, Mark
from mlx_vits.report.figures import describe_smoothing, grid
from mlx_vits.report.results import RunResults, StageResults
from mlx_vits.report.verdict import LEAST_LARGEST_SAMPLE, LOUDNESS_MARGIN
from mlx_vits.synthesis.scoring import FULL_SCALE


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
    """Build the section's HTML: scores, losses, and what moves the weights; "" without SoVITS."""
    stage = results.sovits
    if stage is None:
        return ""
    how = describe_smoothing(len(stage.losses["step"]))
    return f"""<section id="curves"><h2>Curves{" of SoVITS" if results.gpt else ""}</h2>
<p class="note">{how}</p>
<h3>Scores</h3>
{grid(_scores(stage, results.verdict))}
<h3>Losses</h3>
<p class="note">Each loss is shown as weighted in the total. The codebook’s own is always 0, because
the codebook is frozen, and is left out.</p>
{grid([_loss(stage, text) for text in _LOSSES])}
<h3>What moves the weights</h3>
{grid(_forces(stage))}
</section>"""


def _loss(stage: StageResults, text: _Text) -> Chart:
    losses = stage.losses
    line = Line(text.name, "a", losses["step"], losses[text.name])
    return Chart(text.title, text.name, text.meaning, [line])


def _scores(stage: StageResults, verdict: dict[str, Any]) -> list[Chart]:
    scores, base = stage.scores, verdict["base_score"]
    clips = "held-out clips" if verdict["clips_are_held_out"] else "training clips"
    loudest = base["largest_sample"]
    low, high = loudest * (1 - LOUDNESS_MARGIN), loudest * (1 + LOUDNESS_MARGIN)
    margin = f"{LOUDNESS_MARGIN * 100:.0f}\u202f%"
    loudness = [
        Mark(high, f"base +{margin}", "limit"),
        Mark(loudest, "base"),
        Mark(low, f"base −{margin}", "limit"),
        Mark(LEAST_LARGEST_SAMPLE, f"least {LEAST_LARGEST_SAMPLE:,}", "least"),
    ]
    peak = stage.losses["peak_fake"] * FULL_SCALE
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
            [Line("peak_fake", "a", stage.losses["step"], peak)],
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


def _forces(stage: StageResults) -> list[Chart]:
    losses = stage.losses
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
