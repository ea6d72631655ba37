"""`run.json`: how a run was started, for resuming it and loading its voice."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlx_vits.checkpoints.run import MOST_STEPS
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import atomic_write, inside, single_name
from mlx_vits.system.json_files import check_ranges, read_json

Stage = Literal["sovits", "gpt", "both"]
STAGES: tuple[Stage, ...] = ("sovits", "gpt", "both")
RUNS = Path("runs")  # where runs are written unless their user says otherwise
RUN_FILE = "run.json"
DAMAGED = "put the file back as the run wrote it, or start the run again"


@dataclass(frozen=True)
class RunOptions:
    """Options of a run.

    Attributes:
        training: options of the trainer by name, see `VITSTrainingConfig`.
        save_every: steps between checkpoints.
        tensorboard: whether to write TensorBoard files.
        stage: what is trained, of `STAGES`; runs before there was a GPT stage trained SoVITS.
        gpt_training: as `training`, see `T2STrainingConfig`.
    """

    training: dict[str, Any] = field(default_factory=dict)
    save_every: int = 100
    tensorboard: bool = False
    stage: Stage = "sovits"
    gpt_training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, save_every=(1, MOST_STEPS))


@dataclass(frozen=True)
class RunInfo:
    """How a run was started.

    Attributes:
        voice: name of the voice, used in file names.
        data: folder of clips, or the prepared folder.
        prepared: the prepared folder, relative to the run's folder if inside it.
        prepared_sha256: of its contents, see `fingerprint`.
        base: name of the base.
        generator, discriminator, content_encoder: paths of the base's parts, "" for none.
        generator_sha256: of the file of the pretrained weights.
        language: of the transcripts.
        options: of the run.
        gpt: file or folder of the pretrained GPT, "" where none is trained.
        gpt_sha256: of its weights' file.
        gpt_data_sha256: of what it is trained on beside texts, see `gpt_fingerprint`.
        from_scratch: the configuration of a run that started from random weights, else "".
    """

    voice: str
    data: str
    prepared: str
    prepared_sha256: str
    base: str
    generator: str
    discriminator: str
    content_encoder: str
    generator_sha256: str
    language: str
    options: RunOptions = RunOptions()
    gpt: str = ""
    gpt_sha256: str = ""
    gpt_data_sha256: str = ""
    from_scratch: str = ""

    def write(self, folder: Path) -> None:
        """Write `run.json`.

        Raises:
            UserError: it cannot be written.
        """
        with atomic_write(folder / RUN_FILE) as file:
            file.write(json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> RunInfo:
        """Read `run.json`.

        Raises:
            CheckpointError: the folder is not a run's, or the file is damaged or names a path
                outside the run's folder.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder}: is not the folder of a run (no {RUN_FILE}); check the path"
            )
        info = read_json(path, cls, error=CheckpointError, cure=DAMAGED)
        info.check_names(path)
        return info

    def check_names(self, path: Path) -> None:
        """Refuse names that would write outside the run's folder.

        Raises:
            CheckpointError: there is one.
        """
        single_name(self.voice, f"{path}: voice", CheckpointError)
        if not Path(self.prepared).is_absolute():
            inside(path.parent, self.prepared, error=CheckpointError)


def find_run(voice: str | Path) -> Path:
    """Take a name under `runs/` for that run's folder; anything else is returned as it is."""
    path = Path(voice)
    return RUNS / path if len(path.parts) == 1 and is_run(RUNS / path) else path


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / RUN_FILE).is_file()
