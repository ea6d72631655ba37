"""Clips and transcripts to a prepared folder.

The folder appears under its name only when every clip is done. Until then it grows beside it under
a hidden name, and an interrupted preparation goes on from there; a later one computes again only
what has changed.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mlx_vits.audio.files import read_seconds, read_speech, write_wav
from mlx_vits.checkpoints.base import (
    Base,
    content_encoder_file,
    file_sha256,
    load_content_encoder,
)
from mlx_vits.checkpoints.speaker import load_speaker_encoder
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.files import make_folder, replace_folder
from mlx_vits.models.hubert import HubertModel
from mlx_vits.models.speaker_encoder import ERes2NetV2
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.features import speech_features
from mlx_vits.preprocessing.journal import Journal, audio_key
from mlx_vits.preprocessing.levels import mix_level, to_int16
from mlx_vits.preprocessing.prepared import DroppedClip, Manifest, SourceClip, TextLine
from mlx_vits.preprocessing.quality import judge_clip
from mlx_vits.preprocessing.sources import Clip, VoiceSource, read_voice_source
from mlx_vits.preprocessing.speakers import speaker_vector, write_speaker_vector
from mlx_vits.text import CleanText, clean_text

Progress = Callable[[int, int, str], None]
Drop = Callable[[DroppedClip], None]
Notice = Callable[[str], None]
_SHOWN = 10  # signs quoted in a notice


@dataclass(frozen=True)
class PrepareOptions:
    """How a voice is prepared.

    Attributes:
        language: of the transcripts that state none.
        held_out: see `read_voice_source`.
        transcripts: their file, where it is not the one beside the clips.
        strict: whether a clip that cannot be used ends it; otherwise it is dropped and named.
        earlier: prepared folders whose clips may be taken over where nothing has changed.
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
    """Prepares a folder of clips, or returns the one that is there already and fits.

    Args:
        source: clips with transcripts.
        output: the prepared folder. An older one that this project prepared and that no longer
            fits is replaced once the new one is whole; anything else there is refused.
        base: gives the content encoder, and for v2Pro and v2ProPlus the speaker encoder; without
            one no speaker vectors are made.
        config: of the base's generator.
        options: how.
        progress: called with clips done, clips in all and the clip's name.
        drop: called with every clip that is not used.
        notice: called with a sentence on signs in the transcripts that no phoneme stands for.

    Returns:
        `output`.

    Raises:
        DataError: no clip can be used, a transcript is missing, or `output` holds something else;
            with `strict` also a clip that cannot be used. It is named, and nothing is written.
        CheckpointError: the base has no content encoder, or one of another width.
    """
    options = options or PrepareOptions()
    voice = read_voice_source(source, options.held_out, options.transcripts)
    _check_output(source.resolve(), output.resolve())
    manifest = _manifest(voice, base, config, options.language)
    before = layout.read_manifest(output)
    if before is not None and replace(before, dropped=()) == manifest and _is_whole(output, before):
        listed = set(voice.unlisted)
        faulty = [clip for clip in before.dropped if clip.name not in listed]
        if options.strict and faulty:
            raise DataError(faulty[0].reason)
        for clip in before.dropped if drop else ():
            drop(clip)  # type: ignore[misc]
        return output
    partial = output.with_name(f".{output.name.lstrip('.')}.partial")
    maker = _Maker(partial, [output, *options.earlier], base, config, options.strict)
    try:
        dropped = maker.make(voice, manifest, progress, drop)
        if notice and maker.unknown:
            notice(_describe_unknown(maker.unknown))
        replace(manifest, dropped=tuple(dropped)).write(partial)
        replace_folder(partial, output)
        Journal(output).close()
    finally:
        if maker.journal.is_empty:  # nothing there to go on from
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


def _encoder_folder(base: Base) -> Path:
    if base.content_encoder is None:
        raise CheckpointError(
            f"{base.name}: has no content encoder, which preparing a voice needs; give its folder "
            "with --content-encoder"
        )
    return base.content_encoder


def check_speaker_encoder(base: Base, config: Config) -> None:
    """Checks that speaker vectors can be made where a version needs them.

    Raises:
        CheckpointError: the base has no speaker encoder.
    """
    if config.model.is_pro and base.speaker_encoder is None:
        raise CheckpointError(
            f"{base.name}: has no speaker encoder, which preparing a {config.version} voice needs; "
            "give upstream's pretrained_eres2netv2w24s4ep4.ckpt with --speaker-encoder, or fetch "
            f"the base with `mlx-vits download {config.version}`"
        )


def _manifest(voice: VoiceSource, base: Base, config: Config, language: str) -> Manifest:
    held_out = {clip.name for clip in voice.held_out}
    encoder = file_sha256(content_encoder_file(_encoder_folder(base)))
    takes_vectors = config.model.is_pro and base.speaker_encoder is not None
    speaker = file_sha256(base.speaker_encoder) if takes_vectors and base.speaker_encoder else ""
    sources = []
    for clip in voice.clips:
        sha256 = file_sha256(clip.path)
        sources.append(
            SourceClip(
                clip.name,
                sha256,
                _seconds(clip.path),
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
        return 0.0  # said when its turn comes


class _Encoders(NamedTuple):
    content: HubertModel
    speaker: ERes2NetV2 | None


class _Maker:
    """Fills a prepared folder."""

    def __init__(self, folder: Path, earlier: list[Path], base: Base, config: Config, strict: bool):
        self.folder, self.base, self.config, self.strict = folder, base, config, strict
        self.journal = Journal(folder, earlier)
        self.unknown: Counter[str] = Counter()
        self._encoders: _Encoders | None = None

    def make(
        self,
        voice: VoiceSource,
        manifest: Manifest,
        progress: Progress | None,
        drop: Drop | None,
    ) -> list[DroppedClip]:
        """Writes everything but the manifest; the clips that were dropped are returned.

        Raises:
            DataError: no clip is left to train on, or one cannot be used and all have to be.
        """
        made_of = {clip.name: clip for clip in manifest.sources}
        dropped = [
            DroppedClip(name, f"{name}: has no line in the list of transcripts")
            for name in voice.unlisted
        ]
        for clip_left_out in dropped if drop else ():
            drop(clip_left_out)  # type: ignore[misc]
        done, count = 0, len(voice.clips)
        for part, clips in (
            (self.folder, voice.training),
            (self.folder / layout.HELD_OUT_FOLDER, voice.held_out),
        ):
            for name in (layout.SSL_FOLDER, layout.WAV_FOLDER):
                make_folder(part / name)
            texts: list[tuple[Clip, CleanText]] = []
            for clip in clips:
                try:
                    texts.append((clip, self._make_clip(clip, made_of[clip.name], part)))
                except DataError as error:
                    if self.strict:
                        raise
                    dropped.append(DroppedClip(clip.name, str(error)))
                    if drop:
                        drop(dropped[-1])
                done += 1
                if progress:
                    progress(done, count, clip.name)
            if not texts and part == self.folder:
                raise DataError(dropped[len(voice.unlisted)].reason)
            _write_texts(part, texts)
            self._remove_others(part, {clip.name for clip, _ in texts})
        return dropped

    def _make_clip(self, clip: Clip, source: SourceClip, part: Path) -> CleanText:
        try:
            text = clean_text(clip.text, source.language, self.config.version)
        except DataError as error:
            raise DataError(f"{clip.path}: {error}") from error
        files = layout.clip_files(part, clip.name, vector=self.makes_vectors)
        if not self.journal.take(source.key, files):
            self._write_audio(clip, part)
            self.journal.note(source.key, files)
        self.unknown.update(text.unknown)
        return text

    @property
    def makes_vectors(self) -> bool:
        return self.config.model.is_pro and self.base.speaker_encoder is not None

    def _write_audio(self, clip: Clip, part: Path) -> None:
        """Recording, features and speaker vector of a clip."""
        rate = self.config.data.sampling_rate
        wav = read_speech(clip.path, rate)
        fault = judge_clip(wav, self.config.data)
        if fault is not None:
            raise DataError(f"{clip.path}: {fault}")
        encoders = self._load_encoders()
        samples = to_int16(mix_level(wav, str(clip.path)))
        features = speech_features(encoders.content, wav, rate, str(clip.path))
        path, ssl, vector = layout.clip_files(part, clip.name)
        write_wav(path, samples, rate)
        layout.write_features(ssl, features)
        if encoders.speaker is not None:
            make_folder(vector.parent)
            made = speaker_vector(encoders.speaker, samples, rate, clip.path)
            write_speaker_vector(part, clip.name, made)

    def _remove_others(self, part: Path, names: set[str]) -> None:
        """Takes away what an interrupted preparation left of clips that are no longer there."""
        vector = self.makes_vectors
        wanted = {path for name in names for path in layout.clip_files(part, name, vector=vector)}
        for folder in (layout.WAV_FOLDER, layout.SSL_FOLDER, layout.SPEAKER_FOLDER):
            for path in (part / folder).glob("*"):
                if path not in wanted:
                    path.unlink()

    def _load_encoders(self) -> _Encoders:
        if self._encoders is None:
            base, config = self.base, self.config
            content = load_content_encoder(_encoder_folder(base))
            if content.config.hidden_size != config.reduced_dims.ssl_dim:
                raise CheckpointError(
                    f"{base.content_encoder}: gives features {content.config.hidden_size} wide, "
                    f"the generator {base.generator} needs {config.reduced_dims.ssl_dim}; give the "
                    "content encoder that it was trained with"
                )
            speaker = None
            if self.makes_vectors and base.speaker_encoder is not None:
                speaker = load_speaker_encoder(base.speaker_encoder)
                if speaker.config.sv_dim != config.reduced_dims.sv_dim:
                    raise CheckpointError(
                        f"{base.speaker_encoder}: gives vectors of {speaker.config.sv_dim}, the "
                        f"generator {base.generator} needs {config.reduced_dims.sv_dim}; give the "
                        "speaker encoder that it was trained with"
                    )
            self._encoders = _Encoders(content, speaker)
        return self._encoders


def _describe_unknown(unknown: Counter[str]) -> str:
    signs = ", ".join(f"{sign} ({count})" for sign, count in unknown.most_common(_SHOWN))
    more = ", ..." if len(unknown) > _SHOWN else ""
    return (
        f"{unknown.total()} signs in the transcripts are not read aloud: {signs}{more}; write them "
        "out in words, or say with --language what they are."
    )


def _write_texts(part: Path, texts: list[tuple[Clip, CleanText]]) -> None:
    lines = [TextLine(clip.name, text.phonemes, text.normalized) for clip, text in texts]
    layout.write_text_lines(part / layout.TEXT_FILE, lines, [text.word2ph for _, text in texts])
