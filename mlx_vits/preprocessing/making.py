"""Fill a prepared folder: each clip's levelled audio, features and phonemes.

The content encoder takes clips of similar length in batches; a clip is written as soon as its batch
is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.audio.files import read_audio, to_speech, write_wav
from mlx_vits.checkpoints.base import Base, load_content_encoder
from mlx_vits.checkpoints.speaker import load_speaker_encoder
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.models.hubert import HubertModel
from mlx_vits.models.speaker_encoder import ERes2NetV2
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.features import (
    EncoderClip,
    batch_by_length,
    batch_features,
    encoder_input,
)
from mlx_vits.preprocessing.journal import Journal
from mlx_vits.preprocessing.language_check import ReadText, check_language, judge_languages
from mlx_vits.preprocessing.levels import mix_level, to_int16
from mlx_vits.preprocessing.prepared import DroppedClip, Manifest, SourceClip, TextLine
from mlx_vits.preprocessing.quality import judge_clip
from mlx_vits.preprocessing.sources import Clip, VoiceSource
from mlx_vits.preprocessing.speakers import speaker_vector, write_speaker_vector
from mlx_vits.system.files import inside, make_folder, remove_file
from mlx_vits.text import CleanText

Progress = Callable[[int, int, str], None]
Drop = Callable[[DroppedClip], None]
Notice = Callable[[str], None]


def encoder_folder(base: Base) -> Path:
    """Return the folder of a base's content encoder.

    Raises:
        CheckpointError: it has none.
    """
    if base.content_encoder is None:
        raise CheckpointError(
            f"{base.name}: has no content encoder, which preparing a voice needs; give its folder "
            "with --content-encoder"
        )
    return base.content_encoder


class Report:
    """Counts finished clips and collects dropped ones."""

    def __init__(self, count: int, strict: bool, progress: Progress | None, drop: Drop | None):
        self.count, self.strict, self.progress, self.drop = count, strict, progress, drop
        self.done = 0
        self.dropped: list[DroppedClip] = []

    def leave_out(self, name: str, reason: str) -> None:
        """Drop a clip that is not counted in the progress."""
        self.dropped.append(DroppedClip(name, reason))
        if self.drop:
            self.drop(self.dropped[-1])

    def close(self, clip: Clip, fault: DataError | None = None) -> None:
        """Count a clip as finished, or drop it for a fault.

        Raises:
            DataError: there is a fault, and `strict` is set.
        """
        if fault is not None:
            if self.strict:
                raise fault
            self.leave_out(clip.name, str(fault))
        self.done += 1
        if self.progress:
            self.progress(self.done, self.count, clip.name)


class _ReadClip(NamedTuple):
    """A usable clip, read and levelled.

    Attributes:
        clip: its source.
        samples: `(N,)` int16 at the model's rate, levelled.
        encoder_clip: the same as the content encoder's input.
    """

    clip: Clip
    samples: np.ndarray
    encoder_clip: EncoderClip


class _Encoders(NamedTuple):
    content: HubertModel
    speaker: ERes2NetV2 | None


class Maker:
    """Fills a prepared folder."""

    def __init__(
        self,
        folder: Path,
        earlier: list[Path],
        base: Base,
        config: Config,
        report: Report,
        notice: Notice | None = None,
    ):
        self.folder, self.base, self.config, self.report = folder, base, config, report
        self.notice = notice
        self.journal = Journal(folder, earlier)
        self.unknown: Counter[str] = Counter()
        self.one_channel: list[str] = []  # clips read from one channel only
        self._encoders: _Encoders | None = None

    def make(self, voice: VoiceSource, manifest: Manifest) -> None:
        """Write everything but the manifest.

        Raises:
            DataError: no clip is left to train on, or one is unusable and `strict` is set.
        """
        sources = {clip.name: clip for clip in manifest.sources}
        for name in voice.unlisted:
            self.report.leave_out(name, f"{name}: has no line in the list of transcripts")
        parts = (
            (self.folder, voice.training, self._read_texts(voice.training, sources)),
            (
                self.folder / layout.HELD_OUT_FOLDER,
                voice.held_out,
                self._read_texts(voice.held_out, sources),
            ),
        )
        # Before the slow part, which would be wasted on transcripts in the wrong language.
        self._judge_languages([text for _, _, readable in parts for text in readable], sources)
        for part, clips, readable in parts:
            for name in (layout.SPEAKER_FOLDER, layout.SSL_FOLDER, layout.WAV_FOLDER):
                inside(self.folder, str(part.relative_to(self.folder)), name)
            for name in (layout.SSL_FOLDER, layout.WAV_FOLDER):
                make_folder(part / name)
            self._make_audio([clip for clip, _ in readable], sources, part)
            dropped = {clip.name: clip.reason for clip in self.report.dropped}
            texts = [(clip, text) for clip, text in readable if clip.name not in dropped]
            if not texts and part == self.folder:
                raise DataError(next(dropped[clip.name] for clip in clips))
            for _, text in texts:
                self.unknown.update(text.unknown)
            _write_texts(part, texts)
            self._remove_stale(part, {clip.name for clip, _ in texts})

    def _read_texts(
        self, clips: list[Clip], sources: dict[str, SourceClip]
    ) -> list[tuple[Clip, CleanText]]:
        texts = []
        for clip in clips:
            language = sources[clip.name].language
            try:
                check_language(clip.text, language, self.config.version)
                text = layout.clean_clip_text(clip.text, language, self.config.version)
                texts.append((clip, text))
            except DataError as error:
                self.report.close(clip, DataError(f"{clip.path}: {error}"))
        return texts

    def _judge_languages(
        self, texts: list[tuple[Clip, CleanText]], sources: dict[str, SourceClip]
    ) -> None:
        """Report transcripts that look like another language than they are read as."""
        if self.notice is None:
            return
        read = [
            ReadText(clip.name, clip.text, sources[clip.name].language, len(text.guessed))
            for clip, text in texts
        ]
        for finding in judge_languages(read):
            if finding.level == "problem":
                self.notice(finding.words)

    def _make_audio(self, clips: list[Clip], sources: dict[str, SourceClip], part: Path) -> None:
        """Make audio, features and speaker vectors, reusing those made before."""
        while clips:
            new: dict[str, Clip] = {}
            duplicates: list[Clip] = []  # copies of a recording in `new`, reused once that is made
            for clip in clips:
                key = sources[clip.name].key
                if self.journal.take(key, self._files(clip, part)):
                    self.report.close(clip)
                elif key in new:
                    duplicates.append(clip)
                else:
                    new[key] = clip
            in_order = sorted(new.values(), key=lambda clip: sources[clip.name].seconds)
            for batch in batch_by_length(self._read(in_order), lambda c: len(c.encoder_clip.audio)):
                self._make_batch(batch, sources, part)
            clips = duplicates

    def _read(self, clips: Iterable[Clip]) -> Iterator[_ReadClip]:
        """Yield the usable clips one by one."""
        rate = self.config.data.sampling_rate
        for clip in clips:
            name = str(clip.path)
            try:
                recording = read_audio(clip.path)
                wav = to_speech(recording, clip.path, rate)
                reason = judge_clip(wav, self.config.data)
                if reason is not None:
                    raise DataError(f"{name}: {reason}")
                samples = to_int16(mix_level(wav, name))
                encoder_clip = EncoderClip(name, encoder_input(wav, rate, name))
            except DataError as error:
                self.report.close(clip, error)
            else:
                if recording.channel is not None:
                    self.one_channel.append(clip.name)
                yield _ReadClip(clip, samples, encoder_clip)

    def _make_batch(
        self, batch: list[_ReadClip], sources: dict[str, SourceClip], part: Path
    ) -> None:
        encoders = self._load_encoders()
        results = batch_features(encoders.content, [read.encoder_clip for read in batch])
        for read, features in zip(batch, results, strict=True):
            try:
                if isinstance(features, DataError):
                    raise features
                self._write_audio(read, features, part, encoders.speaker)
            except DataError as error:
                self.report.close(read.clip, error)
                continue
            self.journal.note(sources[read.clip.name].key, self._files(read.clip, part))
            self.report.close(read.clip)

    def _write_audio(
        self, read: _ReadClip, features: np.ndarray, part: Path, speaker: ERes2NetV2 | None
    ) -> None:
        """Write the audio, features and speaker vector of a clip."""
        rate = self.config.data.sampling_rate
        path, ssl, vector = layout.clip_files(part, read.clip.name)
        write_wav(path, read.samples, rate)
        layout.write_features(ssl, features)
        if speaker is not None:
            make_folder(vector.parent)
            made = speaker_vector(speaker, read.samples, rate, read.clip.path)
            write_speaker_vector(part, read.clip.name, made)

    def _files(self, clip: Clip, part: Path) -> list[Path]:
        return layout.clip_files(part, clip.name, vector=self.makes_vectors)

    @property
    def makes_vectors(self) -> bool:
        return self.config.model.is_pro and self.base.speaker_encoder is not None

    def _remove_stale(self, part: Path, names: set[str]) -> None:
        """Delete leftovers of an interrupted preparation whose clips no longer exist."""
        vector = self.makes_vectors
        wanted = {path for name in names for path in layout.clip_files(part, name, vector=vector)}
        for folder in (layout.WAV_FOLDER, layout.SSL_FOLDER, layout.SPEAKER_FOLDER):
            for path in (part / folder).glob("*"):
                if path not in wanted:
                    remove_file(path)

    def _load_encoders(self) -> _Encoders:
        if self._encoders is None:
            base, config = self.base, self.config
            content = load_content_encoder(encoder_folder(base))
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


def _write_texts(part: Path, texts: list[tuple[Clip, CleanText]]) -> None:
    lines = [TextLine(clip.name, text.phonemes, text.normalized) for clip, text in texts]
    layout.write_text_lines(part / layout.TEXT_FILE, lines, [text.word2ph for _, text in texts])
