"""Options of a fine-tune: defaults, a voice's suggestions, and what a resumed run may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from mlx_vits.checkpoints.base import Base, file_sha256
from mlx_vits.checkpoints.run_info import RUN_FILE, RunInfo, RunOptions
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.prepare import PrepareOptions
from mlx_vits.preprocessing.prepared import fingerprint
from mlx_vits.system.json_files import read_json
from mlx_vits.training.vits_trainer import StepRecord, VITSTrainingConfig

RUNS = Path("runs")
SUGGESTED = "finetune.json"  # beside a voice's clips: training options of its own
TRAINING_OPTIONS = frozenset(option.name for option in fields(VITSTrainingConfig))

# What may be given when a run is resumed: a run of our own, and one of GPT-SoVITS, whose resume
# files decide the rest.
RESUME_OPTIONS = frozenset(
    {
        "blend",
        "blend_prior",
        "checkpoint_activations",
        "compiled",
        "epochs",
        "precision",
        "save_every",
        "steps",
        "tensorboard",
    }
)
TAKE_OVER_OPTIONS = frozenset(
    {
        *TRAINING_OPTIONS - {"train", "weight_norm"},
        "base",
        "content_encoder",
        "data_dir",
        "language",
        "output",
        "pretrained",
        "save_every",
        "tensorboard",
        "voice",
    }
)


class Screen(Protocol):
    """Where a fine-tune reports: a terminal, a notebook or a test."""

    def say(self, text: str) -> None:
        """Show a line of information."""

    def warn(self, text: str) -> None:
        """Show a line that must not be missed."""

    def preparing(self, done: int, count: int, name: str) -> None:
        """Note that a clip is prepared."""

    def step(self, record: StepRecord, total: int) -> None:
        """Note that a step is done."""


@dataclass(frozen=True)
class FinetuneOptions:
    """What to fine-tune on which data, and how.

    Attributes:
        voice: its name, which the files carry.
        data: clips with transcripts, or a prepared folder.
        base: the pretrained models.
        output: the run's folder.
        training: options of the trainer.
        language: of the transcripts.
        held_out: clips to keep from training, see `read_voice_source`.
        transcripts: their file, unless it lies beside the clips.
        strict: whether to refuse a clip that cannot be used, instead of leaving it out.
        save_every: steps between checkpoints, each of which is scored.
        tensorboard: whether to write TensorBoard files as well.
    """

    voice: str
    data: Path
    base: Base
    output: Path
    training: VITSTrainingConfig = field(default_factory=VITSTrainingConfig)
    language: str = PrepareOptions.language
    held_out: int | None = None
    transcripts: Path | None = None
    strict: bool = False
    save_every: int = RunOptions.save_every
    tensorboard: bool = False

    def record(self, prepared: str, folder: Path, source: Path) -> RunInfo:
        """Describe the run for `run.json`.

        Args:
            prepared: the prepared folder, relative to the run's if it lies within.
            folder: where the run's folder is at present.
            source: the file that the pretrained weights came from.
        """
        base = self.base
        return RunInfo(
            voice=self.voice,
            data=str(self.data),
            prepared=prepared,
            prepared_sha256=fingerprint(folder / prepared),
            base=base.name,
            generator=str(base.generator.resolve()),
            discriminator=str(base.discriminator.resolve()) if base.discriminator else "",
            content_encoder=str(base.content_encoder.resolve()) if base.content_encoder else "",
            generator_sha256=file_sha256(source),
            language=self.language,
            options=RunOptions(asdict(self.training), self.save_every, self.tensorboard),
        )

    @classmethod
    def of_run(cls, info: RunInfo, folder: Path) -> FinetuneOptions:
        """Restore the options that a run was started with.

        Args:
            info: its `run.json`.
            folder: the run's, wherever it lies now.

        Raises:
            CheckpointError: an option of training is unknown or has no such value.
        """
        base = Base(
            info.base,
            folder / info.generator,
            Path(info.discriminator) if info.discriminator else None,
            Path(info.content_encoder) if info.content_encoder else None,
        )
        return cls(
            voice=info.voice,
            data=Path(info.data),
            base=base,
            output=folder,
            training=VITSTrainingConfig.of_run(info.options.training, folder / RUN_FILE),
            language=info.language,
            save_every=info.options.save_every,
            tensorboard=info.options.tensorboard,
        )


def change_options(info: RunInfo, changes: Mapping[str, Any]) -> RunInfo:
    """Replace options of a run that is resumed, of `RESUME_OPTIONS`; None leaves one as it is."""
    given = {name: value for name, value in changes.items() if value is not None}
    training = override(
        info.options.training, {name: given.pop(name) for name in TRAINING_OPTIONS & set(given)}
    )
    return replace(info, options=replace(info.options, **given, training=training))


def override(training: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Replace options of training by those given; a limit in steps would hide new epochs."""
    kept = dict(training)
    if "epochs" in given:
        kept["steps"] = None
    return kept | dict(given)


def suggested_options(folder: Path) -> dict[str, Any]:
    """Read the options of training that a voice's folder suggests; {} if it has none.

    Raises:
        DataError: the file is damaged, or an option is unknown or has no such value.
    """
    path = folder / SUGGESTED
    if not path.is_file():
        return {}
    cure = "mend it or take it away"
    config = read_json(path, VITSTrainingConfig, error=DataError, cure=cure)
    default = asdict(VITSTrainingConfig())
    return {name: value for name, value in asdict(config).items() if value != default[name]}
