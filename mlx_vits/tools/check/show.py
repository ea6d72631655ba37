"""The facts on a terminal: a page no wider than 100 columns, the verdict last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from mlx_vits.config import ReducedDims
from mlx_vits.text.extras import LANGUAGE_NAMES
from mlx_vits.tools.check.clips import Reading
from mlx_vits.tools.check.facts import AlignmentFacts, PartFacts, Spread, Verdict, VoiceFacts
from mlx_vits.tools.check.verdict import words_for
from mlx_vits.tools.pages import count, name_some, pairs, remark_list, safe_text, standard_output

_LABEL_WIDTH = 18
_BAR = 30  # characters of the longest bar
_SILENCE_DB = -100.0  # below it no microphone was open
_FEWEST_TO_SHOW_PROGRESS = 50
_REASONS = 8  # shown of clips that are left out
_WORDS = 6  # shown of guessed ones
_STYLES = {
    "good": "bold green",
    "usable": "bold yellow",
    "too little": "bold yellow",
    "broken": "bold red",
}


def show(facts: VoiceFacts, verdict: Verdict, console: Console | None = None) -> None:
    """Print everything.

    Args:
        facts: from `gather`.
        verdict: from `judge`.
        console: standard output otherwise.
    """
    console = console or standard_output()
    console.print(safe_text(facts.path, "bold"))
    console.print(pairs(_about(facts), _LABEL_WIDTH))
    _section(console, "Clips", _clips(facts))
    _section(console, "Phonemes", _phonemes(facts))
    levelled = ", as it was levelled" if facts.is_prepared else ""
    _section(console, f"Sound{levelled}", _sound(facts))
    if facts.is_prepared:
        _section(console, "Features and speaker vectors", _alignment(facts))
    counts = Counter(left_out.rule for left_out in facts.left_out)
    _section(console, "Left out", list(counts.items()))
    _sentences(console, [left_out.words for left_out in facts.left_out])
    kept = [clip for clip in facts.clips if clip.left_out is None]
    faults = [fault for clip in kept for fault in clip.faults]
    _section(console, "Stops training", [("clips", sum(bool(clip.faults) for clip in kept) or "")])
    _sentences(console, faults)
    console.print()
    console.print(
        safe_text(f"{verdict.word.capitalize()}: {verdict.summary}", _STYLES[verdict.word])
    )
    if verdict.remarks:
        console.print(remark_list(verdict.remarks))


def follow_reading(readings: Iterable[Reading], count: int) -> Iterator[Reading]:
    """Show a bar on standard error while many clips are read, where that is a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or count < _FEWEST_TO_SHOW_PROGRESS,
    ) as bar:
        yield from bar.track(readings, total=count)


def _section(console: Console, title: str, rows: Sequence[tuple[str, Any]]) -> None:
    if any(value not in (None, "") for _, value in rows):
        console.print()
        console.print(Text(title, "bold"))
        console.print(pairs(rows, _LABEL_WIDTH))


def _sentences(console: Console, sentences: Sequence[str]) -> None:
    for words in sentences[:_REASONS]:
        console.print(Padding(safe_text(words), (0, 0, 0, 4)))
    if len(sentences) > _REASONS:
        console.print(f"    and {len(sentences) - _REASONS} more, see --json")


def _about(facts: VoiceFacts) -> list[tuple[str, Any]]:
    able = [version for version, reason in facts.versions.items() if not reason]
    unable: dict[str, list[str]] = {}
    for version, reason in facts.versions.items():
        if reason:
            unable.setdefault(reason, []).append(version)
    rows: list[tuple[str, Any]] = [
        ("kind", facts.kind),
        ("prepared for", facts.version),
        ("content encoder", facts.content_encoder and f"that of {facts.content_encoder}"),
        ("can train", ", ".join(able)),
    ]
    return [*rows, *(("not " + ", ".join(of), why) for why, of in unable.items())]


def _clips(facts: VoiceFacts) -> list[tuple[str, Any]]:
    training, epoch = facts.training, ""
    if facts.epoch_steps:
        times = facts.epoch_steps * facts.batch_size / training.clips
        each = f", each clip about {times:.0f} times" if times >= 1.5 else ""
        epoch = f"{facts.epoch_steps} steps of {facts.batch_size} clips{each}"
    rows = [
        ("to train on", _part(training)),
        ("held out", _part(facts.held_out) if facts.held_out.clips else "none"),
        ("lengths", _spread(training.lengths, "{:.1f}", " s")),
        ("an epoch", epoch),
    ]
    most = max((clips for _, clips in training.histogram), default=0)
    used = [n for n, (_, clips) in enumerate(training.histogram) if clips]
    for label, clips in training.histogram[used[0] : used[-1] + 1] if used else ():
        bar = "█" * max(1 if clips else 0, round(_BAR * clips / most))
        rows.append((f"  {label}", f"{bar} {clips}".strip()))
    return rows


def _part(part: PartFacts) -> str:
    return f"{count(part.clips, 'clip')}, {words_for(part.seconds)}"


def _spread(spread: Spread | None, form: str = "{:.1f}", unit: str = "") -> str:
    if spread is None:
        return ""
    low, middle, high = (form.format(value) for value in spread)
    return f"{middle}{unit}" if low == high else f"{low} to {high}{unit}, median {middle}"


def _phonemes(facts: VoiceFacts) -> list[tuple[str, Any]]:
    spoken, rows = facts.phonemes, []
    if not spoken.total:
        return []
    known = f"{spoken.symbols} of the {spoken.version_symbols} symbols occur"
    rows.append(("in all", f"{spoken.total:,}; {known}"))
    if spoken.inventory is not None:
        found = f"{spoken.inventory - len(spoken.missing)} of {spoken.inventory} phonemes"
        missing = f"; never {', '.join(spoken.missing)}" if spoken.missing else ""
        rare = f"; once or twice {', '.join(spoken.rare)}" if spoken.rare else ""
        rows.append(("English", f"{found}{missing}{rare}"))
    unknown = f"{spoken.unknown}, in {name_some(spoken.unknown_in)}" if spoken.unknown else "none"
    rows.append(("unknown (UNK)", unknown))
    if spoken.guessed:
        rows.append(("guessed words", name_some(list(spoken.guessed), _WORDS)))
    for language, rate in facts.rates.items():
        name = LANGUAGE_NAMES.get(language, "")
        label = f"speed, {name}" if len(facts.rates) > 1 and name else "speed"
        phonemes = _spread(rate.phonemes, unit=" phonemes a second")
        rows.append((label, f"{phonemes}; {rate.characters.median:.0f} characters"))
    return rows


def _sound(facts: VoiceFacts) -> list[tuple[str, Any]]:
    sound = facts.sound
    if sound is None:
        return []
    bandwidth = Spread(*(hertz / 1000 for hertz in sound.bandwidth_hz))
    return [
        ("sample rate", ", ".join(f"{int(rate):,} Hz" for rate in sound.rates)),
        ("bandwidth", f"{_spread(bandwidth, unit=' kHz')} (16 at most)"),
        ("peak", _spread(sound.peak, "{:.2f}") + " (1 is full scale)"),
        ("loudness (RMS)", _spread(sound.rms_db, "{:.0f}", " dB")),
        ("noise floor", _floor(sound.noise_db)),
        ("speech above it", _spread(sound.range_db, "{:.0f}", " dB")),
        ("DC offset", f"{sound.dc_offset.median:.3f} (0 is best)"),
        ("clipped", _names(sound.clipped)),
        ("noisy", _names(sound.noisy)),
    ]


def _names(names: Sequence[str]) -> str:
    return f"{len(names)}: {name_some(names)}" if names else "none"


def _floor(noise: Spread) -> str:
    if noise.median < _SILENCE_DB:
        return "none: digital silence between the words (a noise gate, or a synthetic voice)"
    return _spread(noise, "{:.0f}", " dB")


def _alignment(facts: VoiceFacts) -> list[tuple[str, Any]]:
    found, vectors, rows = facts.alignment, facts.vectors, []
    if found is not None:
        widths = ", ".join(found.widths)
        rows += [
            ("features", f"{widths} wide{_only_fits(found)}" if widths else "none"),
            (
                "frames",
                f"{found.same} clips as many as the spectrogram, {found.one_more} one fewer",
            ),
            ("misaligned", _names(found.misaligned)),
            ("not numbers", _names(found.not_finite)),
            ("other WAV forms", _names(found.odd_files) if found.odd_files else ""),
        ]
    if vectors is not None:
        cosine = f", mean cosine {vectors.mean_cosine:.2f}" if vectors.mean_cosine else ""
        wide = f", {', '.join(vectors.widths)} wide" if vectors.widths else ""
        total = len(facts.clips)
        number = "all" if vectors.clips == total else f"{vectors.clips} of {total}"
        words = f"{number} clips{wide}{cosine}" if vectors.clips else "none"
        rows.append(("speaker vectors", words))
    return rows


def _only_fits(found: AlignmentFacts) -> str:
    full = str(ReducedDims().ssl_dim)
    return "" if full in found.widths else f", for a base of that width (GPT-SoVITS's have {full})"
