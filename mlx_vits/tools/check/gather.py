"""All facts about a voice's data, gathered clip by clip."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from mlx_vits.config import VERSIONS, Config
from mlx_vits.errors import DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepared import Manifest
from mlx_vits.tools.check.clips import Reading, count_clips, read_clips
from mlx_vits.tools.check.facts import (
    AlignmentFacts,
    Bin,
    ClipFacts,
    Duplicate,
    LeftOut,
    PartFacts,
    Spread,
    VoiceFacts,
)
from mlx_vits.tools.check.outliers import compare_vectors, summarize_sound
from mlx_vits.tools.check.phonemes import summarize_phonemes, summarize_rates
from mlx_vits.tools.check.subject import Subject
from mlx_vits.training.batches import Item, PreparedVoice, epoch_batches, repeat_items

Follow = Callable[[Iterable[Reading], int], Iterable[Reading]]

_EDGES = (2, 4, 6, 8, 10, 15)  # seconds


def gather(subject: Subject, follow: Follow | None = None) -> VoiceFacts:
    """Read every clip of a voice once, its speaker vector twice.

    Args:
        subject: from `find_subject`.
        follow: passes the clips on as they are read, and knows how many there are; to show how
            far the work is.

    Raises:
        DataError: the texts cannot be read, or list no clip.
    """
    clips: list[ClipFacts] = []
    symbols: Counter[str] = Counter()
    odd_files = []
    readings: Iterable[Reading] = read_clips(subject)
    if follow is not None:
        readings = follow(readings, count_clips(subject))
    for reading in readings:
        clip = reading.clip
        clips.append(clip)
        if clip.is_trained_on:
            symbols.update(reading.symbols)
        if reading.file_form:
            odd_files.append(f"{clip.name} ({reading.file_form})")
    if not clips:
        raise DataError(
            f"{subject.folder / layout.TEXT_FILE}: lists no clip; prepare the voice again"
        )
    is_prepared = subject.source is None
    training = [clip for clip in clips if clip.is_trained_on]
    held_out = [clip for clip in clips if clip.held_out and clip.left_out is None]
    manifest = subject.manifest
    version = manifest.version if manifest is not None else ""
    return VoiceFacts(
        path=str(subject.folder),
        kind=subject.kind,
        is_prepared=is_prepared,
        version=version,
        content_encoder=manifest.content_encoder if manifest is not None else "",
        batch_size=subject.batch_size,
        epoch_steps=_epoch_steps(training, subject.batch_size),
        versions=_versions(subject.folder, manifest, training) if is_prepared else {},
        training=_part(training),
        held_out=_part(held_out),
        phonemes=summarize_phonemes(symbols, training, version or "v2"),
        rates=summarize_rates(training),
        sound=summarize_sound(training),
        alignment=_alignment(clips, odd_files) if is_prepared else None,
        vectors=compare_vectors(subject.folder, clips) if is_prepared else None,
        clips=tuple(clips),
        left_out=tuple(_left_out(subject, clips)),
        duplicates=tuple(_duplicates(clips)),
        note=subject.note,
    )


def _epoch_steps(clips: Sequence[ClipFacts], batch_size: int) -> int:
    items = [Item(clip.name, [], clip.sampler_frames) for clip in clips]
    return len(epoch_batches(repeat_items(items), batch_size, 0, 1)) if items else 0


def _versions(
    folder: Path, manifest: Manifest | None, clips: Sequence[ClipFacts]
) -> dict[str, str]:
    """Which versions the trainer takes the folder for, and why not the others."""
    found = {}
    for version in VERSIONS:
        if manifest is not None and (manifest.version == "v1") != (version == "v1"):
            found[version] = f"it has {manifest.version} phonemes"
            continue
        config = Config.from_dict({"model": {"version": version}})
        found[version] = _vector_fault(clips) if config.model.is_pro else ""
        if not found[version]:
            try:
                PreparedVoice(folder, config)
            except DataError as error:
                found[version] = str(error)
    return found


def _vector_fault(clips: Sequence[ClipFacts]) -> str:
    """What keeps a version from training that takes speaker vectors."""
    faults = [clip.vector_fault for clip in clips if clip.vector_fault]
    widths = sorted({clip.vector_width for clip in clips if clip.vector_width is not None})
    if faults:
        return faults[0]
    if not widths:
        return f"it has no speaker vectors ({layout.SPEAKER_FOLDER}/)"
    if len(widths) > 1:
        return f"its speaker vectors differ in width ({', '.join(map(str, widths))})"
    return ""


def _part(clips: Sequence[ClipFacts]) -> PartFacts:
    lengths = [clip.seconds for clip in clips if clip.seconds]
    edges = [0, *_EDGES, float("inf")]
    labels = [
        f"under {_EDGES[0]} s",
        *(f"{a} to {b} s" for a, b in pairwise(_EDGES)),
        f"over {_EDGES[-1]} s",
    ]
    bins = [
        Bin(label, sum(low <= seconds < high for seconds in lengths))
        for label, (low, high) in zip(labels, pairwise(edges), strict=True)
    ]
    spread = Spread.of(lengths) if lengths else None
    return PartFacts(len(clips), sum(lengths), spread, tuple(bins))


def _alignment(clips: Sequence[ClipFacts], odd_files: list[str]) -> AlignmentFacts:
    read = [(clip.name, clip.features) for clip in clips if clip.features is not None]
    widths = Counter(str(features.width) for _, features in read)
    return AlignmentFacts(
        widths=dict(widths.most_common()),
        same=sum(features.spec_frames == features.frames for _, features in read),
        one_more=sum(features.spec_frames == features.frames + 1 for _, features in read),
        misaligned=tuple(name for name, features in read if not features.is_aligned),
        not_finite=tuple(name for name, features in read if not features.is_finite),
        odd_files=tuple(odd_files),
    )


def _left_out(subject: Subject, clips: Sequence[ClipFacts]) -> Iterable[LeftOut]:
    """What is not trained on: named when preparing, by the loader's rules, or in no list."""
    if subject.source is not None:
        yield from (clip.left_out for clip in clips if clip.left_out is not None)
        for words in subject.faults:
            place = Path(words.partition(": ")[0]).name
            line = re.search(r": (line \d+)\b", words)
            name = f"{place} {line[1]}" if line else place
            yield LeftOut(name, "cannot be matched", words)
        for name in subject.source.unlisted:
            words = f"{name}: has no line in the list of transcripts"
            yield LeftOut(name, "has no transcript", words)
        return
    for dropped in subject.manifest.dropped if subject.manifest is not None else ():
        yield LeftOut(dropped.name, "left out when it was prepared", dropped.reason)
    yield from (clip.left_out for clip in clips if clip.left_out is not None)
    yield from _unlisted(subject.folder)


def _unlisted(folder: Path) -> Iterable[LeftOut]:
    """Lines in another form, lines that are there twice, and files without a line."""
    path = folder / layout.TEXT_FILE
    faults: list[str] = []
    names = Counter(line.name for line in layout.read_text_lines(path, faults.append))
    for words in faults:
        rule = "not four columns" if "four columns" in words else "damaged line"
        line = re.search(r"line \d+", words.removeprefix(f"{path}"))
        yield LeftOut(line[0] if line else "", rule, words)
    for name, times in names.items():
        if times > 1:
            yield LeftOut(name, "listed twice", f"{name}: is listed {times} times")
    for part in (layout.WAV_FOLDER, layout.SSL_FOLDER, layout.SPEAKER_FOLDER):
        for file in sorted((folder / part).glob("*")):
            name = file.name if part == layout.WAV_FOLDER else file.name.removesuffix(".pt")
            if name not in names and not name.startswith("."):
                yield LeftOut(name, "not listed", f"{part}/{file.name}: has no line in {path.name}")


def _duplicates(clips: Sequence[ClipFacts]) -> Iterable[Duplicate]:
    """Clips of the same recording, then others of the same text."""
    recorded = _groups(clips, lambda clip: clip.digest)
    for names, same in recorded.items():
        yield _duplicate("recording", names, same)
    for names, same in _groups(clips, _plain_text).items():
        if names not in recorded:
            yield _duplicate("text", names, same)


def _groups(
    clips: Sequence[ClipFacts], key: Callable[[ClipFacts], str]
) -> dict[tuple[str, ...], list[ClipFacts]]:
    """Clips that share a key, by their names; "" is no key."""
    groups: dict[str, list[ClipFacts]] = {}
    for clip in clips:
        groups.setdefault(key(clip), []).append(clip)
    groups.pop("", None)
    return {tuple(c.name for c in same): same for same in groups.values() if len(same) > 1}


def _duplicate(
    what: Literal["recording", "text"], names: tuple[str, ...], same: list[ClipFacts]
) -> Duplicate:
    has_one_text = len({_plain_text(clip) for clip in same}) == 1
    return Duplicate(what, names, has_one_text, len({clip.held_out for clip in same}) > 1)


def _plain_text(clip: ClipFacts) -> str:
    return "".join(c for c in clip.text.casefold() if c.isalnum() or c == " ").strip()
