"""Write `report.html`, a self-contained page on a finished run.

Sound and pictures are embedded as data, curves as SVG, style and script as text. A content security
policy in the page forbids any request, so that it stays self-contained.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from mlx_vits.report.curves import percent
from mlx_vits.report.drift import drift_section
from mlx_vits.report.gpt_section import gpt_section
from mlx_vits.report.listening import listening_section
from mlx_vits.report.new_sentence import new_sentence_section
from mlx_vits.report.results import RunResults, read_results
from mlx_vits.report.training_curves import curves_section
from mlx_vits.synthesis.scoring import FULL_SCALE
from mlx_vits.system.files import atomic_write
from mlx_vits.version import __version__

REPORT = "report.html"
_FOR_INFORMATION = ("drift",)  # findings that cannot fail


def write_report(folder: Path) -> Path:
    """Write a finished run's `report.html`.

    Args:
        folder: the run's, with `verdict.json`, `losses.jsonl`, `scores.jsonl` and `samples/`.

    Returns:
        Path of the page, whose content depends on the run alone.

    Raises:
        UserError: a file of the run is missing or damaged, or the page cannot be written.
    """
    page = build_page(read_results(folder))
    with atomic_write(folder / REPORT) as file:
        file.write(page.encode("utf-8"))
    return folder / REPORT


def build_page(results: RunResults) -> str:
    """Build the page's HTML.

    Raises:
        DataError: a sample of the run is missing or damaged.
    """
    verdict = results.verdict
    script = _resource("script.js")
    # The policy allows the script with this hash and no other.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    return Template(_resource("template.html")).substitute(
        title=escape(f"{verdict['voice']}: fine-tune report"),
        script_hash=f"sha256-{digest}",
        style=_resource("style.css"),
        script=script,
        header=_header(verdict),
        verdict=_verdict_section(verdict),
        listen=listening_section(results) + new_sentence_section(results),
        curves=curves_section(results),
        gpt=gpt_section(results),
        drift=drift_section(verdict["drift"]) if results.sovits else "",
        made=_made_section(verdict),
    )


def _resource(name: str) -> str:
    return files("mlx_vits.report").joinpath(name).read_text(encoding="utf-8")


def _header(verdict: dict[str, Any]) -> str:
    warning = verdict["base_warning"]
    # Options must not be broken across lines.
    words = re.sub(r"--[\w-]+", r'<span class="option">\g<0></span>', escape(warning))
    loud = f'<p class="warning" role="note"><b>{words}</b></p>' if warning else ""
    trained = list(_stages(verdict))
    lengths = ", ".join(
        f"{name + ': ' if trained[1:] else ''}{_count(part['steps'], 'step')} in "
        f"{_count(part['epochs'], 'epoch')}"
        for name, part in trained
    )
    kind, base = "Fine-tuned voice", f"the base <b>{escape(verdict['base'])}</b>"
    if verdict.get("from_scratch"):
        kind, base = "Voice trained from scratch", f"random weights, with the codes of {base}"
    return f"""<header><p class="kind">{kind}</p><h1>{escape(verdict["voice"])}</h1>
<p class="facts">from {base}
({escape(verdict["version"])}), {lengths}, {_duration(verdict["seconds"])}</p>
{loud}</header>"""


def _stages(verdict: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and part of the verdict of every stage that was trained."""
    if "final_score" in verdict:
        yield "SoVITS", verdict
    if "gpt" in verdict:
        yield "GPT", verdict["gpt"]


def _verdict_section(verdict: dict[str, Any]) -> str:
    better = verdict["better_than_base"]
    state, mark, label = ("good", "✓", "Better") if better else ("bad", "✗", "Not better")
    if verdict.get("from_scratch"):
        label = "Trained" if better else "Not trained yet"
    passed = {
        finding["words"]: finding["passed"]
        for name, finding in verdict["findings"].items()
        if name not in _FOR_INFORMATION
    }
    marks = {True: ("pass", "✓"), False: ("fail", "✗"), None: ("info", "·")}
    words = "".join(
        f'<li class="{kind}"><span aria-hidden="true">{sign}</span><div>{escape(text)}</div></li>'
        for text in verdict["words"]
        for kind, sign in [marks[passed.get(text)]]
    )
    return f"""<section class="verdict {state}"><h2><span class="state"><span
aria-hidden="true">{mark}</span> {label}</span> {escape(verdict["verdict"])}</h2>
<div class="why"><ul>{words}</ul>
{_score_table(verdict) if "final_score" in verdict else ""}</div></section>"""


def _score_table(verdict: dict[str, Any]) -> str:
    clips = "held-out clips" if verdict["clips_are_held_out"] else "training clips"
    base, tuned = verdict["base_score"], verdict["final_score"]
    rows = (
        ("mel_distance", "mel distance, mean", lambda value: f"{value:.3f}"),
        ("largest_sample", "largest sample, maximum", lambda value: f"{value:,.0f}"),
        ("rms", "rms, mean", lambda value: f"{value:,.0f}"),
    )
    body = "".join(
        f'<tr><th scope="row">{title}</th><td>{form(base[key])}</td><td>{form(tuned[key])}</td>'
        f"<td>{percent(tuned[key] / base[key] - 1, sign=True) if base[key] else '–'}</td></tr>"
        for key, title, form in rows
    )
    return f"""<table class="scores"><caption>Over the {len(verdict["clips"])} {clips}</caption>
<thead><tr><th scope="col">score</th><th scope="col">base</th><th scope="col">fine-tuned</th>
<th scope="col">change</th></tr></thead><tbody>{body}</tbody></table>"""


def _made_section(verdict: dict[str, Any]) -> str:
    facts = [
        ("voice", escape(verdict["voice"])),
        ("base", escape(verdict["base"])),
        ("model version", escape(verdict["version"])),
        *_lengths(verdict),
        ("time, from the last start", _duration(verdict["seconds"])),
        *([("reference", escape(verdict["reference"]))] if "reference" in verdict else []),
        *_best(verdict),
        ("mlx_vits", escape(__version__)),
        ("mlx", escape(version("mlx"))),
    ]
    options = "".join(
        _pairs(
            f"Options of {name}",
            [(f"<code>{escape(k)}</code>", _option(v)) for k, v in part["options"].items()],
        )
        for name, part in _stages(verdict)
    )
    return f"""<section id="made"><h2>How it was made</h2>
<div class="columns">{_pairs("The run", facts)}{options}</div>
<p class="note">Amplitudes are those of the model’s raw output, neither normalised nor clipped, in
units of {FULL_SCALE:,}: the largest sample is the maximum of |sample| over the clips, rms the root
mean square. The clips are re-spoken at speed 1 with noise of seed 0 and scale 0.5.
<code>python -m mlx_vits.train --help</code> says what each option means.</p></section>"""


def _lengths(verdict: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, part in _stages(verdict):
        for unit in ("steps", "epochs"):
            yield f"{unit} of {name}", f"{part[unit]:,.0f}"


def _best(verdict: dict[str, Any]) -> list[tuple[str, str]]:
    best = verdict.get("best")
    if best is None or best["mel_distance"] is None:
        return []
    words = f"step {best['step']:,}, mel distance {best['mel_distance']:.3f}"
    return [("nearest to the recordings", words)]


def _pairs(caption: str, rows: list[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<table class="pairs"><caption>{caption}</caption><tbody>{body}</tbody></table>'


def _option(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(str(value))


def _count(count: float, unit: str) -> str:
    return f"{count:,.0f} {unit}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    """Format seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
