"""Transcribe clips with Whisper: `mlx-whisper` on Apple silicon, `faster-whisper` elsewhere.

Both belong to the optional extra `asr`. They download a model on first use, or take the folder of
one. Source: Radford et al. 2022, arXiv:2212.04356.
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
from mlx_vits.system.installing import install_command

DEFAULT_MODEL = "large-v3-turbo"
_RATE = 16000


class Heard(NamedTuple):
    """The recognised text of a clip, and Whisper's code of its language."""

    text: str
    language: str


Recogniser = Callable[[Path, "str | None"], Heard]


def load_recogniser(model: str = DEFAULT_MODEL) -> Recogniser:
    """Load the recogniser for this machine.

    Args:
        model: name of a Whisper model size, or a folder.

    Raises:
        UserError: the extra is not installed, or the model cannot be loaded.
    """
    is_apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return _load_mlx(model) if is_apple else _load_faster(model)


def _load_mlx(model: str) -> Recogniser:
    try:
        import mlx_whisper  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise _no_recogniser() from error
    from mlx_vits.audio.streams import stream_recording

    place = model if Path(model).is_dir() else f"mlx-community/whisper-{model}"

    def recognise(path: Path, language: str | None) -> Heard:
        audio = np.concatenate(list(stream_recording(path, _RATE)))  # a slice may be long
        with _model_errors(model):
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
        raise _no_recogniser() from error
    with _model_errors(model):
        loaded = WhisperModel(model, device="auto", compute_type="default")

    def recognise(path: Path, language: str | None) -> Heard:
        with _model_errors(model):
            segments, info = loaded.transcribe(
                str(path), language=language, condition_on_previous_text=False
            )
            text = " ".join(segment.text.strip() for segment in segments)
        return Heard(text, str(info.language))

    return recognise


def _no_recogniser() -> UserError:
    return UserError(
        "there is no speech recogniser here to write transcripts with; install it with "
        f"{install_command('asr')}, or write them yourself and give the file with --transcripts"
    )


@contextmanager
def _model_errors(model: str) -> Iterator[None]:
    """Turn errors of a recogniser's library about its model into a `UserError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # Undocumented by the libraries; these cover network, hub and disk.
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
    """Yield the transcript of each clip; without speech its text is empty.

    Args:
        clips: recordings of up to about 30 s.
        recogniser: from `load_recogniser`.
        language: upstream's code; None to detect it for each clip.
        progress: called with clips done, total and the clip's name.

    Raises:
        DataError: a clip is in a language that is not supported.
    """
    for number, clip in enumerate(clips, 1):
        heard = recogniser(clip, language)
        text = " ".join(heard.text.replace("|", " ").split())
        code = LANGUAGES.get(heard.language)
        if text and code is None and language is None:
            raise DataError(
                f"{clip}: is in a language ({heard.language}) that GPT-SoVITS does not speak, or "
                "is mistaken for one; say which it is with --language"
            )
        if progress:
            progress(number, len(clips), clip.name)
        yield Transcript(clip.name, text, language or code or "en", str(clip))
