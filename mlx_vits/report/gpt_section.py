"""The section on the GPT stage: how well it foretells codes, and what moves its weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_vits.report.charts import Chart, Line, Mark
from mlx_vits.report.curves import percent
from mlx_vits.report.figures import describe_smoothing, grid
from mlx_vits.report.results import RunResults, StageResults


def gpt_section(results: RunResults) -> str:
    """Build the section's HTML; "" where no GPT was trained."""
    stage = results.gpt
    if stage is None:
        return ""
    gpt = results.verdict["gpt"]
    how = describe_smoothing(len(stage.losses["step"]))
    return f"""<section id="gpt"><h2>The GPT</h2>
<p class="lead">It turns a text into the codes that SoVITS speaks: pace, melody, accent.
{_who_speaks(gpt)}</p>
{_table(gpt)}
<p class="note">{how}</p>
{grid([*_scores(stage, gpt), *_losses(stage)])}
</section>"""


def _who_speaks(gpt: dict[str, Any]) -> str:
    last = f"{gpt['epochs']:,.0f}"
    if not gpt["speaks"]:
        return f"The base’s own speaks: none of the {last} epochs foretold new speech better."
    if not gpt["clips_are_held_out"]:
        return "That of the last epoch speaks, as no clip was held out to choose by."
    return f"That of epoch <b>{gpt['speaks']:,.0f}</b> of {last} speaks: the best on new speech."


def _table(gpt: dict[str, Any]) -> str:
    clips = "held-out clips" if gpt["clips_are_held_out"] else "training clips"
    base, tuned, last = (gpt[name] for name in ("base_score", "final_score", "last_score"))
    rows = (
        ("ce", "cross-entropy of a code", lambda value: f"{value:.3f}"),
        ("top3_accuracy", "among the first three", percent),
    )
    body = "".join(
        f'<tr><th scope="row">{title}</th><td>{form(base[key])}</td><td>{form(tuned[key])}</td>'
        f"<td>{form(last[key])}</td></tr>"
        for key, title, form in rows
    )
    return f"""<table class="scores"><caption>Codes of {len(gpt["clips"])} {clips}</caption>
<thead><tr><th scope="col">score</th><th scope="col">base</th><th scope="col">speaks</th>
<th scope="col">last epoch</th></tr></thead><tbody>{body}</tbody></table>"""


def _scores(stage: StageResults, gpt: dict[str, Any]) -> list[Chart]:
    steps = _column(stage, "step")
    clips = "held-out clips" if gpt["clips_are_held_out"] else "training clips"
    base = gpt["base_score"]
    return [
        Chart(
            "Cross-entropy on new speech",
            "ce",
            f"Per code of the {clips}. It should fall below the line. Where it rises again, the "
            "clips are learnt by heart; that epoch does not speak.",
            [Line("", "a", steps, _column(stage, "ce"), "dots")],
            [Mark(base["ce"], "base")],
        ),
        Chart(
            "Codes among the first three guesses",
            "top3_accuracy",
            f"Share of the codes of the {clips}. It should rise, or stay level.",
            [Line("", "a", steps, _column(stage, "top3_accuracy"), "dots")],
            [Mark(base["top3_accuracy"], "base")],
        ),
    ]


def _column(stage: StageResults, key: str) -> np.ndarray:
    return np.array([score[key] for score in stage.scores], dtype=np.float64)


def _losses(stage: StageResults) -> list[Chart]:
    losses = stage.losses
    steps = losses["step"]
    norms = [
        Line("in all", "a", steps, losses["grad_norm"]),
        Line("its loss", "b", steps, losses["grad_norm_task"]),
        Line("its pull to the base", "c", steps, losses["grad_norm_reg"], "plain"),
    ]
    return [
        Chart(
            "Cross-entropy in training",
            "ce",
            "Per code of a step’s clips. It should fall; far below that on new speech, it is "
            "memory.",
            [Line("ce", "a", steps, losses["ce"])],
        ),
        Chart(
            "Gradient norms",
            "grad_norm, _task, _reg",
            "How hard the loss and the pull push, on a logarithmic axis.",
            norms,
            log=True,
        ),
        Chart(
            "Pull to the base",
            "loss_reg",
            "Squared relative distance to the base’s weights, times its strength. It begins at 0 "
            "and rises as the GPT leaves the base.",
            [Line("loss_reg", "a", steps, losses["loss_reg"], "plain")],
        ),
    ]
