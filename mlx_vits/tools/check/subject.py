"""What is checked: a prepared folder, ours or GPT-SoVITS's, a run's, or clips with transcripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_vits.checkpoints.base import weights_home
from mlx_vits.checkpoints.run_info import RUN_FILE, RunInfo, is_run
from mlx_vits.errors import DataError, UserError
from mlx_vits.finetune.data import PREPARED, VOICES, is_name
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.clips import needs_clips
from mlx_vits.preprocessing.prepared import Manifest
from mlx_vits.preprocessing.sources import VoiceSource, read_voice_source
from mlx_vits.system.files import given_path
from mlx_vits.training.vits_trainer import VITSTrainingConfig

_UPSTREAM_RUN = "logs_s2"  # how the folder of a run begins that lies in a prepared one of upstream
_UPSTREAM_TEXT_PARTS = "2-name2text-*.txt"


@dataclass(frozen=True)
class CheckOptions:
    """How a voice is looked at.

    Attributes:
        language: of transcripts that state none; None for English, or in a prepared folder for
            what its phonemes are.
        held_out: of clips, see `read_voice_source`.
        transcripts: of clips: their file, where it is not the one beside them.
        batch_size: that steps are counted for; None for the run's own, or the trainer's.
    """

    language: str | None = None
    held_out: int | None = None
    transcripts: Path | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        folder: of the prepared data or the clips.
        kind: in words.
        source: None where the folder is prepared.
        manifest: of a folder that this project prepared.
        language: see `CheckOptions`.
        batch_size: clips a step.
        note: what is to be said of the folder itself, or "".
        faults: sentences on clips and lines of the transcripts that preparing leaves out.
    """

    folder: Path
    kind: str
    source: VoiceSource | None
    manifest: Manifest | None
    language: str | None
    batch_size: int
    note: str = ""
    faults: tuple[str, ...] = ()


def find_subject(voice: str, options: CheckOptions | None = None) -> Subject:
    """Finds what is meant.

    Args:
        voice: a folder, or a name under `voices/` or the bases' folder, as training takes it.
        options: how.

    Raises:
        UserError: there is no such folder, or nothing in it can be told from anything else.
    """
    options = options or CheckOptions()
    folder = _find_folder(voice)
    batch_size = options.batch_size or VITSTrainingConfig.batch_size
    if is_run(folder):
        info = RunInfo.read(folder)
        if options.batch_size is None:
            training = VITSTrainingConfig.of_run(info.options.training, folder / RUN_FILE)
            batch_size = training.batch_size
        prepared = folder / info.prepared
        if not layout.is_prepared(prepared):
            raise DataError(
                f"{prepared}: is no longer there, which the run in {folder} was started with; put "
                "it back, or check the clips themselves"
            )
        has_changed = layout.fingerprint(prepared) != info.prepared_sha256
        note = "It has changed since the run began, which cannot be resumed with it."
        return _prepared(
            prepared, "the data of a run", options, batch_size, note if has_changed else ""
        )
    if layout.is_prepared(folder):
        return _prepared(folder, "", options, batch_size)
    if folder.name.startswith(_UPSTREAM_RUN) and layout.is_prepared(folder.parent):
        return _prepared(folder.parent, "", options, batch_size)
    if layout.is_prepared(folder / PREPARED):
        return _prepared(folder / PREPARED, "", options, batch_size)
    _check_is_no_half_prepared(folder)
    if options.transcripts is None and needs_clips([folder]):
        raise DataError(
            f"{folder}: holds recordings without transcripts; cut and transcribe them with "
            "`mlx-vits prepare`, then check what it makes"
        )
    faults: list[str] = []
    source = read_voice_source(folder, options.held_out, options.transcripts, faults.append)
    kind = "clips with transcripts, not prepared yet"
    language = options.language
    return Subject(folder, kind, source, None, language, batch_size, faults=tuple(faults))


def _find_folder(voice: str) -> Path:
    folder = given_path(voice, DataError)
    if is_name(voice):
        for kept in (VOICES / voice / PREPARED, weights_home() / voice / "voice"):
            if kept.is_dir():
                return kept
    if folder.is_file():
        raise DataError(f"{voice}: is a file; give the folder that the voice's clips lie in")
    if not folder.is_dir():
        raise DataError(f"{voice}: there is no such folder; check the path")
    return folder


def _prepared(
    folder: Path, kind: str, options: CheckOptions, batch_size: int, note: str = ""
) -> Subject:
    for flag, given in (("held-out", options.held_out), ("transcripts", options.transcripts)):
        if given is not None:
            raise UserError(f"--{flag}: is for clips, but {folder} is prepared; leave it out")
    manifest = Manifest.read(folder)
    by = "GPT-SoVITS" if manifest is None else "mlx_vits"
    words = f"{kind}, prepared by {by}" if kind else f"a folder that {by} prepared"
    return Subject(folder, words, None, manifest, options.language, batch_size, note)


def _check_is_no_half_prepared(folder: Path) -> None:
    """A preparation of GPT-SoVITS that stopped half-way is no folder of clips."""
    parts = [folder / layout.WAV_FOLDER, folder / layout.SSL_FOLDER]
    if any(path.is_dir() for path in parts) or any(folder.glob(_UPSTREAM_TEXT_PARTS)):
        raise DataError(
            f"{folder}: has no {layout.TEXT_FILE}, so its preparation was not finished; finish it "
            "where it was begun"
        )
