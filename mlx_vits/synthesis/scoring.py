"""How a voice does on clips it was never trained on.

Measured on what `Voice.convert` gives for each clip (noise seed 0, scale 0.5, speed 1, one
reference for all), raw: neither normalised nor clipped, in units of 32,767.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.audio.files import read_audio
from mlx_vits.audio.spectrogram import mel_spectrogram
from mlx_vits.config import Config
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.synthesis.voice import Voice
from mlx_vits.text import phonemes_to_ids

FULL_SCALE = 32767
_FEW = 3  # training clips to listen to where none was held out


class ListeningClip(NamedTuple):
    """A clip to score on.

    Attributes:
        name: of the clip.
        text: what is said.
        wav: `(N,)`, the recording, levelled like the training clips.
        features: `(S, ssl_dim)`.
        phoneme_ids: of the text.
    """

    name: str
    text: str
    wav: np.ndarray
    features: np.ndarray
    phoneme_ids: list[int]


class ClipScore(NamedTuple):
    """One clip, spoken.

    Attributes:
        name: of the clip.
        wav: `(N,)` float32, raw.
        largest_sample: in units of 32,767.
        rms: root mean square, in the same units.
        mel_distance: mean |log-mel difference| to the recording, over its frames.
    """

    name: str
    wav: np.ndarray
    largest_sample: float
    rms: float
    mel_distance: float


class Score(NamedTuple):
    """All clips together.

    Attributes:
        largest_sample: the maximum over the clips.
        rms: the mean over the clips.
        mel_distance: the mean over the clips.
        clips: one by one.
    """

    largest_sample: float
    rms: float
    mel_distance: float
    clips: list[ClipScore]


class Listening(NamedTuple):
    """What a voice is judged on.

    Attributes:
        clips: those held out; the first training clips where none was.
        are_held_out: whether they were never trained on.
        reference: name of the first training clip, whose style all are spoken in.
        speaker_vector: `(1, V)` of that clip; None where the version takes none.
    """

    clips: list[ListeningClip]
    are_held_out: bool
    reference: str
    speaker_vector: mx.array | None


def read_listening(folder: Path, config: Config) -> Listening:
    """Read what a prepared folder gives to listen to.

    Raises:
        DataError: a file is damaged.
    """
    told: list[str] = []  # where the clips were read to be trained on
    trained = layout.read_text_lines(folder / layout.TEXT_FILE, told.append)
    apart = folder / layout.HELD_OUT_FOLDER
    listed = apart / layout.TEXT_FILE
    held_out = layout.read_text_lines(listed) if listed.is_file() else []
    part, lines = (apart, held_out) if held_out else (folder, trained[:_FEW])
    clips = [
        ListeningClip(
            line.name,
            line.text,
            read_audio(part / layout.WAV_FOLDER / line.name).wav,
            layout.read_features(
                part / layout.SSL_FOLDER / f"{line.name}.pt", config.reduced_dims.ssl_dim
            ),
            phonemes_to_ids(line.phonemes, config.version),
        )
        for line in lines
    ]
    reference, vector = trained[0].name, None
    if config.model.is_pro:
        path = layout.speaker_file(folder, reference)
        vector = mx.array(layout.read_speaker_vector(path, config.reduced_dims.sv_dim))[None]
    return Listening(clips, bool(held_out), reference, vector)


def score_voice(
    voice: Voice,
    clips: list[ListeningClip],
    reference: mx.array,
    speaker_vector: mx.array | None = None,
) -> Score:
    """Score a voice.

    Args:
        clips: from `read_listening`.
        reference: linear spectrogram [1, 1025, T] of the first training clip.
        speaker_vector: `(1, V)` of the same clip, for v2Pro and v2ProPlus.
    """
    scored = [_score_clip(voice, clip, reference, speaker_vector) for clip in clips]
    return Score(
        largest_sample=max(clip.largest_sample for clip in scored),
        rms=float(np.mean([clip.rms for clip in scored])),
        mel_distance=float(np.mean([clip.mel_distance for clip in scored])),
        clips=scored,
    )


def _score_clip(
    voice: Voice, clip: ListeningClip, reference: mx.array, speaker_vector: mx.array | None
) -> ClipScore:
    wav = voice.speak_features(clip.features, clip.phoneme_ids, reference, sv_emb=speaker_vector)
    return ClipScore(
        name=clip.name,
        wav=wav,
        largest_sample=float(np.abs(wav).max()) * FULL_SCALE,
        rms=float(np.sqrt(np.mean(np.square(wav, dtype=np.float64)))) * FULL_SCALE,
        mel_distance=mel_distance(wav, clip.wav, voice.config),
    )


def mel_distance(spoken: np.ndarray, recording: np.ndarray, config: Config) -> float:
    """Compute the mean |log-mel difference| over the frames that both have; both `(N,)`."""
    mels = [mel_spectrogram(mx.array(wav)[None], config.data)[0] for wav in (spoken, recording)]
    frames = min(len(mel) for mel in mels)
    return float(mx.mean(mx.abs(mels[0][:frames] - mels[1][:frames])))
