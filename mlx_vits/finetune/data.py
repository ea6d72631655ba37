"""Find a voice's data, by name or by path; recordings are made into clips on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from mlx_vits.checkpoints.base import DEMO, weights_home
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.clips import ClipOptions, make_clips, needs_clips
from mlx_vits.preprocessing.prepared import is_prepared
from mlx_vits.system.files import given_path, single_name, tidy

VOICES = Path("voices")
CLIPS, PREPARED = "clips", "prepared"  # within a voice's folder


class VoiceData(NamedTuple):
    """A voice's name, and its clips with transcripts or prepared folder."""

    name: str
    folder: Path


class DataScreen(Protocol):
    """Where progress is reported."""

    def say(self, text: str) -> None:
        """Show a line of information."""

    def warn(self, text: str) -> None:
        """Show a line that must not be missed."""

    def cutting(self, done: int, count: int, name: str) -> None:
        """Note that a recording was cut into clips."""

    def listening(self, done: int, count: int, name: str) -> None:
        """Note that a clip was recognised."""


def find_voice_data(
    voice: str | None,
    data_dir: Path | None,
    options: ClipOptions,
    screen: DataScreen,
    *,
    transcripts: Path | None = None,
) -> VoiceData:
    """Find a voice's clips or prepared folder.

    Args:
        voice: a name under `voices/` (prepared) or the bases' folder (the demo's), or the path of a
            folder of clips, of a prepared folder, or of a recording.
        data_dir: a folder of clips or a prepared one; `voice` is then only its name.
        options: how recordings become clips.
        screen: where progress is reported.
        transcripts: a file of their own; then nothing is recognised.

    Raises:
        UserError: neither is given, a recogniser is needed and missing, or slicing options are
            given but nothing is cut.
        DataError: there is no such voice.
    """

    def with_clips(name: str, source: Path) -> VoiceData:
        own, made = replace(options, speaker=name), VOICES / name / CLIPS
        return VoiceData(name, find_clips([source], made, own, screen, transcripts=transcripts))

    if voice is None and data_dir is None:
        raise UserError("give --voice NAME or --data-dir FOLDER; `--voice demo` is there to try")
    if data_dir is not None:
        folder = given_path(data_dir, DataError)
        if not folder.is_dir():
            raise DataError(f"{data_dir}: there is no such folder; check the path")
        name = single_name(voice, "--voice") if voice else _name_of(folder)
        return with_clips(name, folder)
    assert voice is not None
    path = given_path(voice, DataError)
    if is_name(voice):
        tidy(VOICES / voice / PREPARED)
        for kept in (VOICES / voice / PREPARED, weights_home() / voice / "voice"):
            if kept.is_dir():
                options.refuse_slicing(kept)
                return VoiceData(voice, kept)
    if not path.exists():
        raise DataError(
            f"{voice}: there is no such voice; give the folder of its clips, a recording, or "
            f"`{DEMO}` to try"
        )
    return with_clips(_name_of(path), path)


def is_name(voice: str) -> bool:
    """Tell whether a voice is given by a name to look up, rather than by a path."""
    return len(Path(voice).parts) == 1 and voice != ".."


def find_clips(
    sources: Sequence[Path],
    folder: Path,
    options: ClipOptions,
    screen: DataScreen,
    *,
    transcripts: Path | None = None,
) -> Path:
    """Find the clips of sources; recordings are cut and recognised first.

    Args:
        sources: recordings, folders of them, or one folder of clips or prepared folder.
        folder: where clips that are made belong.
        options: how recordings become clips.
        screen: where progress is reported.
        transcripts: a file of their own; then nothing is recognised.

    Returns:
        `folder` if clips were made, otherwise the source.

    Raises:
        UserError: a recogniser is needed and missing, or slicing options are given but nothing is
            cut.
        DataError: there is no such source, or it cannot be read.
    """
    source = sources[0]
    is_folder = len(sources) == 1 and source.is_dir()
    told_elsewhere = is_folder and (is_prepared(source) or transcripts is not None)
    if told_elsewhere or not needs_clips(sources):
        options.refuse_slicing(source)
        return source
    made = make_clips(
        sources,
        folder,
        options,
        transcripts=transcripts,
        cutting=screen.cutting,
        listening=screen.listening,
        notice=screen.warn,
    )
    screen.say(f"Transcripts: {made}; correct them and run this again for a better voice.")
    return folder


def _name_of(path: Path) -> str:
    path = path.resolve()
    # A shipped voice lies in weights/NAME/voice.
    if path.name == "voice" and path.parent.parent == weights_home().resolve():
        return path.parent.name
    if path.name == PREPARED and path.parent.parent == VOICES.resolve():
        return path.parent.name
    name = path.name if path.is_dir() else path.stem
    if not name:
        raise DataError(f"{path}: has no name to call the voice by; give --voice as well")
    return single_name(name, "--voice")
