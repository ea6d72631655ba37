"""The files that a voice needs to speak a text, beside its own.

A run or a base keeps its reference as `reference.json`, which names a recording beside it:
`{"audio": "reference.wav", "text": "what is said", "language": "en"}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlx_vits.errors import CheckpointError
from mlx_vits.models.hubert import HubertConfig
from mlx_vits.system.files import atomic_write, inside
from mlx_vits.system.json_files import read_json

REFERENCE_FILE = "reference.json"


@dataclass(frozen=True)
class StoredReference:
    """A recording, and what it says.

    Attributes:
        audio: the recording; in the file relative to it.
        text: its transcript, "" where it is not known.
        language: of the transcript.
    """

    audio: str
    text: str = ""
    language: str = "en"


@dataclass(frozen=True)
class Companions:
    """What was found for a voice, or chosen by the user; None for what is not there.

    Attributes:
        gpt: the T2S model: a file or a folder.
        content_encoder: a folder in Hugging Face's form.
        speaker_encoder: a file, for v2Pro and v2ProPlus.
        find_reference: finds the voice's own reference.
        gpt_bits: that the weights of the T2S model are held in; None for those of its file.
    """

    gpt: Path | None = None
    content_encoder: Path | None = None
    speaker_encoder: Path | None = None
    find_reference: Callable[[], StoredReference | None] = lambda: None
    gpt_bits: int | None = None

    @cached_property
    def reference(self) -> StoredReference | None:
        """The voice's own, found when first asked for.

        Raises:
            CheckpointError: its file is damaged.
        """
        return self.find_reference()

    def completed_by(self, other: Companions) -> Companions:
        """Return these, with those of `other` for what is missing."""
        return Companions(
            self.gpt or other.gpt,
            self.content_encoder or other.content_encoder,
            self.speaker_encoder or other.speaker_encoder,
            lambda: self.reference or other.reference,
            self.gpt_bits or other.gpt_bits,
        )


def check_content_encoder(config: HubertConfig, ssl_dim: int, name: str) -> None:
    """Refuse a content encoder whose features a voice cannot take.

    Args:
        config: of the content encoder.
        ssl_dim: of the voice.
        name: of the voice, for the message.

    Raises:
        CheckpointError: they have another width.
    """
    width = config.hidden_size
    if width != ssl_dim:
        raise CheckpointError(
            f"{name}: its content encoder gives features {width} wide, and the voice needs "
            f"{ssl_dim}; give the folder of the one that it was trained with (--content-encoder)"
        )


def read_stored_reference(folder: Path) -> StoredReference | None:
    """Read the reference of a run or a base; None where it keeps none.

    Raises:
        CheckpointError: its file is damaged, or names a recording outside of the folder.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        return None
    stored = read_json(path, StoredReference, error=CheckpointError, cure="give --reference")
    audio = inside(folder, stored.audio, error=CheckpointError)
    return StoredReference(str(audio), stored.text, stored.language)


def vector_beside(recording: Path) -> Path:
    """Return where a run keeps the speaker vector of a reference, for v2Pro and v2ProPlus."""
    return recording.with_name(f"{recording.stem}_sv.pt")


def write_stored_reference(folder: Path, reference: StoredReference) -> None:
    """Write `reference.json`.

    Args:
        reference: `audio` is a file's name within the folder.
    """
    content = {"audio": reference.audio, "text": reference.text, "language": reference.language}
    with atomic_write(folder / REFERENCE_FILE) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())
