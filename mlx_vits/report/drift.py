"""How far each layer's weights moved from the base."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from mlx_vits.report.curves import number

_SHOWN = 20
_PARTS = {
    "dec": "generator: from latents to sound",
    "enc_q": "posterior encoder: from a recording to latents",
    "flow": "flow: between the latents of voice and text",
    "enc_p": "prior encoder: from text and content to latents",
    "ref_enc": "style encoder: from the reference to the voice’s colour",
}


class PartDrift(NamedTuple):
    """Drift of one part of the model: mean and largest relative distance of its layers."""

    name: str
    layers: int
    mean: float
    largest: float


def drift_by_part(drift: dict[str, float]) -> list[PartDrift]:
    """Group relative distances `{layer path: ‖w − w0‖ / ‖w0‖}` by the path's first component."""
    parts: dict[str, list[float]] = {name: [] for name in _PARTS}
    for layer, distance in drift.items():
        parts.setdefault(layer.split(".", 1)[0], []).append(distance)
    return [
        PartDrift(name, len(values), sum(values) / len(values), max(values))
        for name, values in parts.items()
        if values
    ]


def drift_section(drift: dict[str, float]) -> str:
    """Build the section's HTML."""
    if not drift:
        return '<section id="drift"><h2>Drift of the weights</h2><p>None was trained.</p></section>'
    parts = "".join(
        f'<tr><th scope="row"><code>{escape(part.name)}</code> '
        f"<small>{_PARTS.get(part.name, '')}</small></th>"
        f"<td>{part.layers}</td><td>{_share(part.mean)}</td><td>{_share(part.largest)}</td></tr>"
        for part in drift_by_part(drift)
    )
    # Ties are ordered by name, so that the page is reproducible.
    most = sorted(drift.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    scale = most[0][1] or 1.0
    layers = "".join(
        f'<tr><th scope="row"><code>{_breakable(layer)}</code></th><td>{_share(distance)}</td>'
        f'<td class="bars"><span style="width:{100 * distance / scale:.1f}%"></span></td></tr>'
        for layer, distance in most
    )
    return f"""<section id="drift"><h2>Drift of the weights</h2>
<p class="lead">How far each layer is from the base: ‖w − w₀‖ / ‖w₀‖ of its effective weight. A
fine-tune from a good base moves by a few percent at most; a layer that stands out is where to look
first when a voice breaks.</p>
<div class="columns">
<table><caption>By part of the model</caption>
<thead><tr><th scope="col">part</th><th scope="col">layers</th><th scope="col">mean</th>
<th scope="col">largest</th></tr></thead><tbody>{parts}</tbody></table>
<table class="layers"><caption>The {len(most)} layers that moved most</caption>
<thead><tr><th scope="col">layer</th><th scope="col">moved by</th>
<th scope="col"><span class="hidden">as a bar</span></th></tr></thead>
<tbody>{layers}</tbody></table>
</div></section>"""


def _breakable(layer: str) -> str:
    """Allow line breaks after the dots of a layer's path."""
    return escape(layer).replace(".", ".<wbr>")


def _share(value: float) -> str:
    return f"{number(100 * value, 3)}\u202f%"
