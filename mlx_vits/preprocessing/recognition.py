"""What is said in clips, by Whisper: `mlx-whisper` on Apple silicon, `faster-whisper` elsewhere.

Both are one optional extra, `asr`. A model is fetched by them when one is first used; a folder with
a model is taken as it is. Source: Radford et al. 2022, arXiv:2212.04356.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.languages import LANGUAGES
from mlx_vits.preprocessing.transcripts import Transcript

DEFAULT_MODEL = "large-v3-turbo"
_RATE = 16000
_INSTALL = "pip install 'mlx-vits[asr]'"


class Heard(NamedTuple):
    """What a recogniser made of a clip: the text, and Whisper's code of its language."""

    text: str
    language: str


Recogniser = Callable[[Path, "str | None"], Heard]


def load_recogniser(model: str = DEFAULT_MODEL) -> Recogniser:
    """The recogniser of this machine.

    Args:
        model: Whisper's name of a size, or a folder.

    Raises:
        UserError: the extra is not installed, or the model cannot be had.
    """
    is_apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return _load_mlx(model) if is_apple else _load_faster(model)


def _load_mlx(model: str) -> Recogniser:
    try:
        import mlx_whisper  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise _missing() from error
    from mlx_vits.audio.streams import stream_recording

    place = model if Path(model).is_dir() else f"mlx-community/whisper-{model}"

    def recognise(path: Path, language: str | None) -> Heard:
        audio = np.concatenate(list(stream_recording(path, _RATE)))  # a slice may be long
        with _naming(model):
            found: Any = mlx_whisper.transcribe(
                audio,
                path_or_hf_repo=place,
                language=language,
                condition_on_previous_text=False,
            )
        return Heard(str(found["text"]), str(found["language"]))

    return recognise


def _load_faster(model: str) -> Recogniser:
    try:
        from faster_whisper import WhisperModel  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise _missing() from error
    with _naming(model):
        loaded = WhisperModel(model, device="auto", compute_type="default")

    def recognise(path: Path, language: str | None) -> Heard:
        with _naming(model):
            segments, info = loaded.transcribe(
                str(path), language=language, condition_on_previous_text=False
            )
            text = " ".join(segment.text.strip() for segment in segments)
        return Heard(text, str(info.language))

    return recognise


def _missing() -> UserError:
    return UserError(
        f"there is no speech recogniser here to write transcripts with; {_INSTALL}, or write them "
        "yourself and give the file with --transcripts"
    )


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Makes one sentence of what a recogniser's library says of its model."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # The libraries document no errors; those of network, hub and disk are these.
        reason = str(error).strip().partition("\n")[0][:120]
        raise UserError(
            f"{model}: the recogniser's model cannot be used ({reason}); check the connection and "
            "the name, or give the folder of one with --asr-model"
        ) from error


def recognise_clips(
    clips: Sequence[Path],
    recogniser: Recogniser,
    language: str | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[Transcript]:
    """Transcripts of clips, one at a time; a clip in which nothing is heard has an empty text.

    Args:
        clips: recordings of up to some 30 s.
        recogniser: from `load_recogniser`.
        language: upstream's code, None to have it told from each clip.
        progress: called with clips done, clips in all and the clip's name.

    Raises:
        DataError: a clip is in a language that is not supported.
    """
    for number, clip in enumerate(clips, 1):
        heard = recogniser(clip, language)
        text = " ".join(heard.text.replace("|", " ").split())
        told = LANGUAGES.get(heard.language)
        if text and told is None and language is None:
            raise DataError(
                f"{clip}: is in a language ({heard.language}) that GPT-SoVITS does not speak, or "
                "is mistaken for one; say which it is with --language"
            )
        if progress:
            progress(number, len(clips), clip.name)
        yield Transcript(clip.name, text, language or told or "en", str(clip))
