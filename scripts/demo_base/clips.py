"""Which clips there are, what is said in them, and what each is for.

A voices folder holds a folder a voice, each with `transcripts.tsv`: file, speaker where there are
several, text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_vits.audio.files import read_seconds
from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write
from mlx_vits.text import clean_text, phonemes_to_ids
from scripts.demo_base.settings import Settings

# What each clip is for. Nothing is trained on any but the first.
TRAINED, HELD_OUT, UNSEEN = "trained", "held out", "unseen"
FRAME_RATE = 50  # frames a second, of features, labels and spectrograms alike
SILENCE = 0
# ARPAbet without stress, as CMUdict has it; a label is a phone's position here, from 1.
_ARPABET = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W "
    "Y Z ZH"
)
PHONES = tuple(_ARPABET.split())
LABELS = 1 + len(PHONES)
_LABEL = {phone: label for label, phone in enumerate(PHONES, 1)}


class Clip(NamedTuple):
    """A recording and what is said in it.

    Attributes:
        voice: its folder.
        name: of the file.
        speaker: the folder's name where it has one speaker.
        text: as written.
        use: `TRAINED`, `HELD_OUT` or `UNSEEN`.
        ids: of its phonemes.
        sounds: for each of them its label, `SILENCE` for a mark.
    """

    voice: str
    name: str
    speaker: str
    text: str
    use: str
    ids: list[int]
    sounds: list[int]

    @property
    def phones(self) -> list[int]:
        """Which phonemes are phones, marks left out."""
        return [place for place, label in enumerate(self.sounds) if label != SILENCE]


def find_clips(voices: Path, settings: Settings) -> list[Clip]:
    """All clips that are of use, in the order of their transcripts.

    Raises:
        UserError: a folder, a transcript or a recording is missing.
    """
    speech = settings.speech
    rows = [
        row for voice in (*speech.weights, *speech.unseen_voices) for row in _rows(voices, voice)
    ]
    for speaker in speech.unseen_speakers:
        if not any(row[2] == speaker for row in rows):
            raise UserError(f"{voices}: has no {speaker}, who is to stay unseen; mend the settings")
    kept_out = _held_out_texts(rows, settings)
    clips = []
    for voice, name, speaker, text in rows:
        frames = int(read_seconds(voices / voice / name) * FRAME_RATE)
        if not speech.shortest_frames <= frames <= speech.longest_frames:
            continue
        unseen = voice in speech.unseen_voices or speaker in speech.unseen_speakers
        use = UNSEEN if unseen else HELD_OUT if text in kept_out else TRAINED
        phonemes = clean_text(text, "en", settings.model.version).phonemes
        ids = phonemes_to_ids(phonemes, settings.model.version)
        sounds = [label_of(phoneme) for phoneme in phonemes]
        clips.append(Clip(voice, name, speaker, text, use, ids, sounds))
    # A text that is measured on is not learnt from another's mouth.
    measured = {clip.text for clip in clips if clip.use == UNSEEN}
    clips = [clip for clip in clips if clip.use == UNSEEN or clip.text not in measured]
    if not any(clip.use == TRAINED for clip in clips):
        raise UserError(f"{voices}: holds no clip to train on; give the folder of voices")
    return clips


def label_of(phoneme: str) -> int:
    """A phone's label, whatever its stress; `SILENCE` for anything else."""
    return _LABEL.get(phoneme.rstrip("012"), SILENCE)


def _rows(voices: Path, voice: str) -> Iterator[tuple[str, str, str, str]]:
    """Folder, file, speaker and text of each line.

    Raises:
        UserError: the transcripts cannot be read.
    """
    path = voices / voice / "transcripts.tsv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read; give --voices the folder of voices") from error
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if line.strip():
            if len(fields) not in (2, 3):
                raise UserError(f"{path}: line {number} is not file, (speaker,) text; mend it")
            yield voice, fields[0], fields[1] if len(fields) == 3 else voice, fields[-1]


def _held_out_texts(rows: Sequence[tuple[str, str, str, str]], settings: Settings) -> set[str]:
    """A share of each speaker's texts, drawn by the seed."""
    by_speaker: dict[tuple[str, str], set[str]] = {}
    for voice, _, speaker, text in rows:
        by_speaker.setdefault((voice, speaker), set()).add(text)
    random, kept_out = np.random.default_rng(settings.seed), set()
    for _, texts in sorted(by_speaker.items()):
        count = int(np.ceil(settings.speech.held_out_share * len(texts)))
        kept_out.update(random.permutation(sorted(texts))[:count].tolist())
    return kept_out


def voice_digest(voices: Path, clips: Iterable[Clip]) -> str:
    """One SHA-256 over clips: their names, bytes and texts."""
    total = hashlib.sha256()
    for clip in sorted(clips):
        digest = file_sha256(voices / clip.voice / clip.name)
        total.update(f"{clip.name}\t{digest}\t{clip.text}\n".encode())
    return total.hexdigest()


def write_clip_list(path: Path, clips: Sequence[Clip]) -> None:
    """Writes the clips as JSON."""
    with atomic_write(path) as file:
        file.write(json.dumps([clip._asdict() for clip in clips], indent=0).encode())


def read_clip_list(path: Path) -> list[Clip]:
    """Reads them.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
        return [Clip(**row) for row in rows]
    except FileNotFoundError as error:
        raise UserError(f"{path}: is not there yet; run the stage `prepare` first") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged; delete it and run `prepare` again") from error


def frames_at_speed(frames: int, speed: float, original: int) -> np.ndarray:
    """Which frame of the recording each frame of it at another speed shows: `(frames,)` indices.

    Args:
        frames: of the recording at `speed`.
        original: frames that there are at speed 1.
    """
    places = np.floor((np.arange(frames) + 0.5) * speed).astype(np.int64)
    return np.minimum(places, original - 1)
