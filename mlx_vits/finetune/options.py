"""Options of a fine-tune: defaults, a voice's suggestions, and what a resumed run may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from mlx_vits.checkpoints.base import Base, file_sha256
from mlx_vits.checkpoints.gpt_file import gpt_weights
from mlx_vits.checkpoints.run_info import RUN_FILE, RunInfo, RunOptions, Stage
from mlx_vits.config import Config
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.gpt_data import gpt_fingerprint
from mlx_vits.preprocessing.prepare import PrepareOptions
from mlx_vits.preprocessing.prepared import fingerprint
from mlx_vits.system.json_files import read_json
from mlx_vits.system.memory import machine_memory
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.loop import StepRecord
from mlx_vits.training.t2s_trainer import T2STrainingConfig
from mlx_vits.training.vits_trainer import VITSTrainingConfig

_KEPT_SHARE = 8  # of the machine's memory holds the clips of a large voice
SUGGESTED = "finetune.json"  # beside a voice's clips or in a base: options of training
TRAINING_OPTIONS = frozenset(option.name for option in fields(VITSTrainingConfig))
# Options of the GPT stage, and how `T2STrainingConfig` calls them; it shares others with SoVITS.
GPT_OPTIONS = {
    "gpt_epochs": "epochs",
    "gpt_batch_size": "batch_size",
    "gpt_lr": "lr",
    "gpt_optimizer": "optimizer",
    "dpo": "dpo",
}
_SHARED = ("seed", "pretrained_reg_strength", "precision", "compiled", "checkpoint_activations")

# What may be given when a run is resumed: a run of our own, and one of GPT-SoVITS, whose resume
# files decide the rest.
RESUME_OPTIONS = frozenset(
    {
        "blend",
        "blend_prior",
        "checkpoint_activations",
        "compiled",
        "epochs",
        "gpt_epochs",
        "precision",
        "save_every",
        "stage",
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

    def stage(self, name: Stage, number: int, count: int) -> None:
        """Note that a stage begins: "sovits" or "gpt", the `number`-th of so many."""

    def step(self, record: StepRecord, total: int) -> None:
        """Note that a step of the stage is done."""


@dataclass(frozen=True)
class Suggestion(VITSTrainingConfig):
    """What `finetune.json` may hold: options of both stages.

    Attributes:
        gpt_epochs: of the GPT stage; None for the default.
    """

    gpt_epochs: int | None = None


@dataclass(frozen=True)
class FinetuneOptions:
    """What to fine-tune on which data, and how.

    Attributes:
        voice: its name, which the files carry.
        data: clips with transcripts, or a prepared folder.
        base: the pretrained models.
        output: the run's folder.
        training: options of the trainer.
        stage: which nets are trained; None for both if that is possible, else SoVITS.
        gpt_training: options of the GPT's trainer.
        language: of the transcripts.
        held_out: clips to keep from training, see `read_voice_source`.
        transcripts: their file, unless it lies beside the clips.
        strict: whether to refuse a clip that cannot be used, instead of leaving it out.
        save_every: steps between checkpoints, each of which is scored.
        tensorboard: whether to write TensorBoard files as well.
        from_scratch: configuration of a model that starts from random weights; of the base it
            takes content encoder and codebook alone. None for a fine-tune.
    """

    voice: str
    data: Path
    base: Base
    output: Path
    training: VITSTrainingConfig = field(default_factory=VITSTrainingConfig)
    stage: Stage | None = None
    gpt_training: T2STrainingConfig = field(default_factory=T2STrainingConfig)
    language: str = PrepareOptions.language
    held_out: int | None = None
    transcripts: Path | None = None
    strict: bool = False
    save_every: int = RunOptions.save_every
    tensorboard: bool = False
    from_scratch: Path | None = None

    @property
    def trains_sovits(self) -> bool:
        return self.stage != "gpt"

    @property
    def trains_gpt(self) -> bool:
        return self.stage in ("gpt", "both")

    @property
    def gpt(self) -> Path:
        """The pretrained GPT.

        Raises:
            UserError: the base has none.
        """
        if self.base.gpt is None:
            raise UserError(
                f"the base {self.base.name} has no GPT to train; give one with --pretrained-gpt, "
                "or fetch a base with `mlx-vits download v2`"
            )
        return self.base.gpt

    def open_voice(self, prepared: Path, config: Config) -> PreparedVoice | None:
        """Open the clips of the SoVITS stage; None where that is not trained.

        Raises:
            DataError: nothing in the folder can be trained on.
        """
        if not self.trains_sovits:
            return None
        is_large = self.from_scratch is not None  # hours of speech, read for hundreds of epochs
        return PreparedVoice(
            prepared, config, keep_bytes=machine_memory() // _KEPT_SHARE if is_large else 0
        )

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
            options=RunOptions(
                asdict(self.training),
                self.save_every,
                self.tensorboard,
                self.stage or "sovits",
                asdict(self.gpt_training),
            ),
        )

    def record_gpt(self, info: RunInfo, folder: Path) -> RunInfo:
        """Add to `run.json` that the GPT is trained, and from what.

        Args:
            folder: where the run's folder is at present; codes and BERT features are made.
        """
        gpt = self.gpt.resolve()
        return replace(
            info,
            options=replace(info.options, stage=self.stage or "both"),
            gpt=str(gpt),
            gpt_sha256=file_sha256(gpt_weights(gpt)),
            gpt_data_sha256=gpt_fingerprint(folder / info.prepared),
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
            gpt=folder / info.gpt if info.gpt else None,
        )
        return cls(
            voice=info.voice,
            data=Path(info.data),
            base=base,
            output=folder,
            from_scratch=Path(info.from_scratch) if info.from_scratch else None,
            training=VITSTrainingConfig.of_run(info.options.training, folder / RUN_FILE),
            stage=info.options.stage,
            gpt_training=T2STrainingConfig.of_run(info.options.gpt_training, folder / RUN_FILE),
            language=info.language,
            save_every=info.options.save_every,
            tensorboard=info.options.tensorboard,
        )


def change_options(info: RunInfo, changes: Mapping[str, Any]) -> RunInfo:
    """Replace options of a run that is resumed, of `RESUME_OPTIONS`; None leaves one as it is."""
    given = {name: value for name, value in changes.items() if value is not None}
    options, of_trainers = info.options, TRAINING_OPTIONS | set(GPT_OPTIONS)
    training = {name: given[name] for name in TRAINING_OPTIONS & set(given)}
    others = {name: value for name, value in given.items() if name not in of_trainers}
    changed = replace(
        options,
        **others,
        training=override(options.training, training),
        gpt_training=override(options.gpt_training, gpt_options(given)),
    )
    return replace(info, options=changed)


def gpt_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the GPT's trainer among those given, by the names of `T2STrainingConfig`."""
    own = {own: given[name] for name, own in GPT_OPTIONS.items() if name in given}
    return own | {name: given[name] for name in _SHARED if name in given}


def override(training: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Replace options of training by those given; a limit in steps would hide new epochs."""
    kept = dict(training)
    if "epochs" in given:
        kept["steps"] = None
    return kept | dict(given)


def suggested_options(folder: Path) -> dict[str, Any]:
    """Read the options of training that the folder of a voice or a base suggests; {} for none.

    Raises:
        DataError: the file is damaged, or an option is unknown or has no such value.
    """
    path = folder / SUGGESTED
    if not path.is_file():
        return {}
    cure = "mend it or take it away"
    config = read_json(path, Suggestion, error=DataError, cure=cure)
    default = asdict(Suggestion())
    return {name: value for name, value in asdict(config).items() if value != default[name]}
