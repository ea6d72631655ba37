"""The sentence that a voice says although it was never trained on it."""

from __future__ import annotations

import base64
from html import escape

from mlx_vits.report.listening import draw_spectrogram, flac, read_take
from mlx_vits.report.results import NEW_SENTENCE, SAMPLES, RunResults


def new_sentence_section(results: RunResults) -> str:
    """Build the section's HTML; "" where nothing was said.

    Raises:
        DataError: its sound is missing or damaged.
    """
    said = results.verdict.get("new_sentence")
    if said is None:
        return ""
    take = read_take(results.folder / SAMPLES / NEW_SENTENCE, "finetuned")
    sound = base64.b64encode(flac(take.pcm, take.rate)).decode()
    picture = draw_spectrogram(take, "the new sentence", float(take.mel.max()), take.seconds)
    prompt = said["reference_text"]
    origin = (
        f"It continues the recording <q>{escape(prompt)}</q>, in the voice’s manner."
        if prompt
        else "It has the voice’s timbre alone: no clip of 3 to 10 s was there to continue."
    )
    warnings = "".join(f'<p class="note">{escape(warning)}</p>' for warning in said["warnings"])
    return f"""<section id="new"><h2>A sentence it was never trained on</h2>
<p class="lead">Read from its text, with no recording of it. {origin}</p>
<article class="clip"><h3><q lang="{escape(said["language"])}">{escape(said["text"])}</q></h3>
<div class="takes one"><figure class="take finetuned">
<audio controls preload="metadata" aria-label="Fine-tuned, a new sentence"
src="data:audio/flac;base64,{sound}"></audio>
{picture}
<dl><div><dt>largest sample</dt><dd>{said["largest_sample"]:,.0f}</dd></div>
<div><dt>seconds</dt><dd>{said["seconds"]:.1f}</dd></div></dl></figure></div>{warnings}</article>
</section>"""
