"""What is checked: a prepared folder, ours or GPT-SoVITS's, a run's, or clips with transcripts."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """How a voice is looked at."""

    language: str | None = None  # of transcripts that state none; None: English, or as prepared
    held_out: int | None = None  # clips, see `read_voice_source`
    transcripts: Path | None = None  # of clips, where they are not beside them
    batch_size: int | None = None  # to count steps for; None: the run's own, or the trainer's


@dataclass(frozen=True)
class Subject:
    """What is checked."""

    folder: Path  # of the prepared data or the clips
    kind: str  # in words
    source: VoiceSource | None  # None where the folder is prepared
    manifest: Manifest | None  # of a folder that this project prepared
    language: str | None  # see `CheckOptions`
    batch_size: int  # clips a step
    note: str = ""  # on the folder itself
    faults: tuple[str, ...] = ()  # sentences on what preparing leaves out


def find_subject(voice: str, options: CheckOptions | None = None) -> Subject:
    """Find the data of a voice.

    Args:
        voice: a folder, or a name under `voices/` or the bases' folder, as training takes it.

    Raises:
        UserError: there is no such folder, or its data cannot be read.
    """
    options = options or CheckOptions()
    folder = _find_folder(voice)
    if is_run(folder):
        return _data_of_run(folder, options)
    is_upstream_run = folder.name.startswith(_UPSTREAM_RUN)
    for prepared in (folder, folder.parent if is_upstream_run else folder, folder / PREPARED):
        if layout.is_prepared(prepared):
            return _prepared(prepared, options)
    _check_is_no_half_prepared(folder)
    if options.transcripts is None and needs_clips([folder]):
        raise DataError(
            f"{folder}: holds recordings without transcripts; cut and transcribe them with "
            "`mlx-vits prepare`, then check what it makes"
        )
    faults: list[str] = []
    source = read_voice_source(folder, options.held_out, options.transcripts, faults.append)
    kind = "clips with transcripts, not prepared yet"
    batch_size = options.batch_size or VITSTrainingConfig.batch_size
    return Subject(folder, kind, source, None, options.language, batch_size, faults=tuple(faults))


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


def _data_of_run(folder: Path, options: CheckOptions) -> Subject:
    info = RunInfo.read(folder)
    training = VITSTrainingConfig.of_run(info.options.training, folder / RUN_FILE)
    prepared = folder / info.prepared
    if not layout.is_prepared(prepared):
        raise DataError(
            f"{prepared}: is no longer there, which the run in {folder} was started with; put it "
            "back, or check the clips themselves"
        )
    subject = _prepared(prepared, options, training.batch_size)
    has_changed = layout.fingerprint(prepared) != info.prepared_sha256
    note = "It has changed since the run began, which cannot be resumed with it."
    return replace(
        subject,
        kind=f"the data of a run, prepared by {_maker(subject.manifest)}",
        note=note if has_changed else "",
    )


def _prepared(
    folder: Path, options: CheckOptions, batch_size: int = VITSTrainingConfig.batch_size
) -> Subject:
    for flag, given in (("held-out", options.held_out), ("transcripts", options.transcripts)):
        if given is not None:
            raise UserError(f"--{flag}: is for clips, but {folder} is prepared; leave it out")
    manifest = Manifest.read(folder)
    kind = f"a folder that {_maker(manifest)} prepared"
    size = options.batch_size or batch_size
    return Subject(folder, kind, None, manifest, options.language, size)


def _maker(manifest: Manifest | None) -> str:
    return "GPT-SoVITS" if manifest is None else "mlx_vits"


def _check_is_no_half_prepared(folder: Path) -> None:
    """A preparation of GPT-SoVITS that stopped half-way is no folder of clips."""
    parts = [folder / layout.WAV_FOLDER, folder / layout.SSL_FOLDER]
    if any(path.is_dir() for path in parts) or any(folder.glob(_UPSTREAM_TEXT_PARTS)):
        raise DataError(
            f"{folder}: has no {layout.TEXT_FILE}, so its preparation was not finished; finish it "
            "where it was begun"
        )
