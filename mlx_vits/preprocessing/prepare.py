"""Turn clips and transcripts into a prepared folder.

The folder is built under a hidden name beside its final one and renamed when every clip is done.
An interrupted preparation resumes there; a later one recomputes only what has changed.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_vits.audio.files import read_seconds
from mlx_vits.checkpoints.base import Base, content_encoder_file, file_sha256
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.journal import Journal, audio_key
from mlx_vits.preprocessing.making import (
    Drop,
    Maker,
    Notice,
    Progress,
    Report,
    encoder_folder,
)
from mlx_vits.preprocessing.prepared import DroppedClip, Manifest, SourceClip
from mlx_vits.preprocessing.sources import VoiceSource, read_voice_source
from mlx_vits.system.files import make_folder, replace_folder, sweep, tidy
from mlx_vits.system.locks import WriterLock

_SHOWN = 10  # characters or names quoted in a notice


@dataclass(frozen=True)
class PrepareOptions:
    """Options of the preparation.

    Attributes:
        language: of transcripts that state none.
        held_out: see `read_voice_source`.
        transcripts: transcript file, if not the one in the clips' folder.
        strict: whether an unusable clip is an error; otherwise it is dropped and reported.
        earlier: prepared folders whose unchanged clips may be reused.
    """

    language: str = "en"
    held_out: int | None = None
    transcripts: Path | None = None
    strict: bool = False
    earlier: Sequence[Path] = ()


def prepare_voice(
    source: Path,
    output: Path,
    base: Base,
    config: Config,
    options: PrepareOptions | None = None,
    *,
    progress: Progress | None = None,
    drop: Drop | None = None,
    notice: Notice | None = None,
) -> Path:
    """Prepare a folder of clips, or return the existing result if it is up to date.

    Args:
        source: clips with transcripts.
        output: the prepared folder. An outdated one of this project is replaced once the new one
            is complete; anything else there is refused.
        base: supplies the content encoder and, for v2Pro and v2ProPlus, the speaker encoder;
            without the latter no speaker vectors are made.
        config: of the base's generator.
        options: defaults if None.
        progress: called with clips done, total and the clip's name.
        drop: called with every unused clip, and with every unusable transcript line (the name is
            then empty). If None, or with `strict`, a faulty line is an error.
        notice: called with a sentence for transcripts that look like another language than they
            are read as, for characters without a phoneme, and for clips read from one channel.

    Returns:
        `output`.

    Raises:
        DataError: no clip is usable, a transcript is missing, or `output` holds something else;
            with `strict` also for the first unusable clip, before anything is written.
        UserError: another process is preparing the same folder, or it cannot be written.
        CheckpointError: the base has no content encoder, or its width does not match.
    """
    options = options or PrepareOptions()
    fault = (lambda reason: drop(DroppedClip("", reason))) if drop and not options.strict else None
    voice = read_voice_source(source, options.held_out, options.transcripts, fault)
    tidy(output)
    _check_output(source.resolve(), output.resolve())
    before = layout.read_manifest(output)
    manifest = _manifest(voice, base, config, options.language, before)
    if before is not None and replace(before, dropped=()) == manifest and _is_whole(output, before):
        listed = set(voice.unlisted)
        faulty = [clip for clip in before.dropped if clip.name not in listed]
        if options.strict and faulty:
            raise DataError(faulty[0].reason)
        for clip in before.dropped if drop else ():
            drop(clip)  # type: ignore[misc]
        return output
    partial = output.with_name(f".{output.name.lstrip('.')}.partial")
    make_folder(partial)
    with WriterLock(partial) as lock:
        sweep(partial)
        report = Report(len(voice.clips), options.strict, progress, drop)
        maker = Maker(partial, [output, *options.earlier], base, config, report, notice)
        try:
            maker.make(voice, manifest)
            for words in _remarks(maker) if notice else ():
                notice(words)  # type: ignore[misc]
            order = [*voice.unlisted, *(clip.name for clip in voice.clips)]
            dropped = sorted(report.dropped, key=lambda clip: order.index(clip.name))
            replace(manifest, dropped=tuple(dropped)).write(partial)
            replace_folder(partial, output)
            lock.folder = output
            Journal(output).close()
        finally:
            if maker.journal.is_empty:  # nothing to resume from
                shutil.rmtree(partial, ignore_errors=True)
    return output


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    parts = {_part(folder, clip) for clip in manifest.sources}
    if not all((part / layout.TEXT_FILE).is_file() for part in parts):
        return False
    dropped = {clip.name for clip in manifest.dropped}
    has_vectors = bool(manifest.speaker_encoder_sha256)
    return all(
        path.is_file()
        for clip in manifest.sources
        if clip.name not in dropped
        for path in layout.clip_files(_part(folder, clip), clip.name, vector=has_vectors)
    )


def _part(folder: Path, clip: SourceClip) -> Path:
    return folder / layout.HELD_OUT_FOLDER if clip.held_out else folder


def _check_output(source: Path, output: Path) -> None:
    if output == source or output in source.parents or source in output.parents:
        raise DataError(f"{output}: lies in the same place as the clips; choose another folder")
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"{output}: is a file; choose a folder")
    ours = (output / layout.MANIFEST).is_file()
    if any(output.iterdir()) and not ours:
        raise DataError(f"{output}: holds something else; choose an empty or a new folder")


def check_speaker_encoder(base: Base, config: Config) -> None:
    """Check that a base has the speaker encoder that its version needs.

    Raises:
        CheckpointError: the base has no speaker encoder.
    """
    if config.model.is_pro and base.speaker_encoder is None:
        raise CheckpointError(
            f"{base.name}: has no speaker encoder, which preparing a {config.version} voice needs; "
            "give upstream's pretrained_eres2netv2w24s4ep4.ckpt with --speaker-encoder, or fetch "
            f"the base with `mlx-vits download {config.version}`"
        )


def _manifest(
    voice: VoiceSource, base: Base, config: Config, language: str, before: Manifest | None
) -> Manifest:
    held_out = {clip.name for clip in voice.held_out}
    encoder = file_sha256(content_encoder_file(encoder_folder(base)))
    takes_vectors = config.model.is_pro and base.speaker_encoder is not None
    speaker = file_sha256(base.speaker_encoder) if takes_vectors and base.speaker_encoder else ""
    seconds = {clip.sha256: clip.seconds for clip in before.sources} if before else {}
    sources = []
    for clip in voice.clips:
        sha256 = file_sha256(clip.path)
        sources.append(
            SourceClip(
                clip.name,
                sha256,
                seconds.get(sha256) or _seconds(clip.path),
                clip.text,
                clip.name in held_out,
                clip.language or language,
                audio_key(sha256, encoder, speaker, str(config.data.sampling_rate)),
            )
        )
    return Manifest(
        content_encoder=base.name,
        content_encoder_sha256=encoder,
        ssl_dim=config.reduced_dims.ssl_dim,
        version=config.version,
        language=language,
        sources=tuple(sources),
        speaker_encoder_sha256=speaker,
    )


def _seconds(path: Path) -> float:
    try:
        return round(read_seconds(path), 3)
    except DataError:
        return 0.0  # reported when the clip is read


def _remarks(maker: Maker) -> Iterator[str]:
    if maker.unknown:
        yield _describe_unknown(maker.unknown)
    if maker.one_channel:
        yield _describe_one_channel(maker.one_channel)


def _describe_unknown(unknown: Counter[str]) -> str:
    signs = ", ".join(f"{sign} ({count})" for sign, count in unknown.most_common(_SHOWN))
    more = ", ..." if len(unknown) > _SHOWN else ""
    return (
        f"{unknown.total()} signs in the transcripts are not read aloud: {signs}{more}; write them "
        "out in words, or say with --language what they are."
    )


def _describe_one_channel(names: Sequence[str]) -> str:
    clips = "1 clip" if len(names) == 1 else f"{len(names)} clips"
    more = ", ..." if len(names) > _SHOWN else ""
    return (
        f"Only one channel is read of {clips} ({', '.join(names[:_SHOWN])}{more}), since the "
        "average of all would lose most of the voice."
    )
