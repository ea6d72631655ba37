"""Options of a fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlx_vits.arguments.data import (
    BaseName,
    BatchSize,
    ClipArguments,
    ContentEncoder,
    RecordingArguments,
    SpeakerEncoder,
)
from mlx_vits.arguments.groups import Group, option
from mlx_vits.checkpoints.base import Base, choose_base
from mlx_vits.checkpoints.run import MOST_STEPS
from mlx_vits.checkpoints.run_info import STAGES
from mlx_vits.errors import UserError
from mlx_vits.finetune.options import FinetuneOptions
from mlx_vits.nn.weight_norm import NORM_SCHEMES
from mlx_vits.training.precision import CHECKPOINTING, PRECISIONS
from mlx_vits.training.t2s_trainer import RATES, T2STrainingConfig
from mlx_vits.training.vits_trainer import VITSTrainingConfig

_DEFAULT = VITSTrainingConfig()
_GPT = T2STrainingConfig()
_CHOICES: dict[str, Sequence[str]] = {
    "stage": STAGES,
    "gpt_optimizer": tuple(RATES),
    "train": ("all", "decoder"),
    "weight_norm": NORM_SCHEMES,
    "precision": PRECISIONS,
    "checkpoint_activations": CHECKPOINTING,
}


def _not_one_of(flag: str, value: str, choices: Sequence[str]) -> UserError:
    return UserError(f"{flag} {value}: is not one of {', '.join(choices)}")


@dataclass(frozen=True)
class VoiceArguments(Group):
    """Which voice to fine-tune."""

    panel = "Voice"

    voice: Annotated[
        str | None,
        option("Voice: a name under voices/ or weights/, a folder of clips, or a recording."),
    ] = None
    data_dir: Annotated[
        Path | None,
        option("Folder of clips with transcripts, or a prepared folder."),
    ] = None
    output: Annotated[Path | None, option("Folder of the run.", "runs/NAME")] = None


@dataclass(frozen=True)
class BaseArguments(Group):
    """The pretrained models to start from; arguments of `choose_base`."""

    panel = "Base"

    base: BaseName = None
    pretrained: Annotated[
        Path | None, option("Pretrained generator: s2G .pth, or safetensors.")
    ] = None
    pretrained_d: Annotated[
        Path | None, option("Pretrained discriminator: s2D .pth, or safetensors.")
    ] = None
    pretrained_gpt: Annotated[
        Path | None, option("Pretrained GPT: s1 .ckpt, or the folder of one.", "the base's")
    ] = None
    content_encoder: ContentEncoder = None
    speaker_encoder: SpeakerEncoder = None
    from_scratch: Annotated[
        Path | None,
        option(
            "Start from random weights, of the sizes and rates in this config.json; content "
            "encoder and codebook are still the base's."
        ),
    ] = None

    def choose(self, *, for_demo: bool) -> Base:
        """Find the base's files.

        Raises:
            CheckpointError: one is missing.
        """
        return choose_base(
            self.base,
            for_demo=for_demo,
            pretrained=self.pretrained,
            pretrained_d=self.pretrained_d,
            pretrained_gpt=self.pretrained_gpt,
            content_encoder=self.content_encoder,
            speaker_encoder=self.speaker_encoder,
        )


@dataclass(frozen=True)
class TrainingArguments(Group):
    """How to train; fields of `VITSTrainingConfig`."""

    panel = "Training"

    epochs: Annotated[
        int | None,
        option("Passes over the clips, which are repeated to about 100.", _DEFAULT.epochs, min=1),
    ] = None
    steps: Annotated[int | None, option("Updates in total; overrides --epochs.", min=1)] = None
    batch_size: BatchSize = None
    accumulate: Annotated[
        int | None,
        option(
            "Batches per step, where a larger batch does not fit into memory.",
            _DEFAULT.accumulate,
            min=1,
        ),
    ] = None
    lr_g: Annotated[
        float | None, option("Learning rate of the generator.", _DEFAULT.lr_g, min=0)
    ] = None
    lr_d: Annotated[
        float | None, option("Learning rate of the discriminator.", _DEFAULT.lr_d, min=0)
    ] = None
    text_low_lr_rate: Annotated[
        float | None,
        option(
            "Learning rate of the text side, as a share of --lr-g.",
            _DEFAULT.text_low_lr_rate,
            min=0,
        ),
    ] = None
    pretrained_reg_strength: Annotated[
        float | None,
        option(
            "Strength of the pull toward the pretrained weights, 0 for none.",
            _DEFAULT.pretrained_reg_strength,
            "--pretrained-reg",
            min=0,
        ),
    ] = None
    blend: Annotated[
        float | None,
        option(
            "How far the voice goes from the pretrained weights (0) to the trained ones (1).",
            _DEFAULT.blend,
            min=0,
            max=1,
        ),
    ] = None
    blend_prior: Annotated[
        float | None,
        option(
            "The same for enc_p, enc_q and flow; it matters most with a small base.",
            "as --blend",
            min=0,
            max=1,
        ),
    ] = None
    segment_size: Annotated[
        int | None,
        option("Samples to decode of each clip, at 32 kHz.", _DEFAULT.segment_size, min=1280),
    ] = None
    seed: Annotated[
        int | None,
        option(
            "Random seed of batches, noise, slices and dropout.",
            _DEFAULT.seed,
            min=0,
            max=2**31 - 1,
        ),
    ] = None
    train: Annotated[
        str | None, option("What to train: all, or decoder (dec and ref_enc).", _DEFAULT.train)
    ] = None
    weight_norm: Annotated[
        str | None,
        option(f"Layers with weight norm: {', '.join(NORM_SCHEMES)}.", _DEFAULT.weight_norm),
    ] = None
    bias_correction: Annotated[
        bool | None,
        option(
            "Bias correction of AdamW, which PyTorch always does.",
            "on",
            "--bias-correction/--no-bias-correction",
        ),
    ] = None
    precision: Annotated[
        str | None, option("Compute in fp32 or bf16; auto is fp32.", _DEFAULT.precision)
    ] = None
    compiled: Annotated[
        bool | None,
        option(
            "Compile the step; its kernels are fused at first use, on CUDA only if this is given.",
            "on a GPU",
            "--compile/--no-compile",
        ),
    ] = None
    checkpoint_activations: Annotated[
        str | None,
        option(
            "Recompute activations to save memory: on, off, or auto (if memory is short).",
            _DEFAULT.checkpoint_activations,
        ),
    ] = None

    def check(self) -> None:
        """Refuse values that no training can have, before anything else is done.

        Raises:
            UserError: there is one.
        """
        given = self.given()
        for name, choices in _CHOICES.items():
            if name in given and given[name] not in choices:
                raise _not_one_of(self.flag_of(name), given[name], choices)
        try:
            VITSTrainingConfig(**given)
        except ValueError as fault:
            name, _, words = str(fault).partition(" ")
            raise UserError(f"{self.flag_of(name)} {words}; choose another value") from fault


@dataclass(frozen=True)
class GPTArguments(Group):
    """How to train the GPT; see `GPT_OPTIONS`."""

    panel = "GPT stage"

    stage: Annotated[
        str | None,
        option(
            "What to train: sovits (how it sounds), gpt (how it reads), or both.",
            "both, if the base has a GPT",
        ),
    ] = None
    gpt_epochs: Annotated[
        int | None,
        option("Passes over the clips, which are repeated to about 100.", _GPT.epochs, min=1),
    ] = None
    gpt_batch_size: Annotated[int | None, option("Clips per batch.", _GPT.batch_size, min=1)] = None
    gpt_lr: Annotated[
        float | None,
        option(
            "Learning rate.",
            ", ".join(f"{rate:g} with {name}" for name, rate in RATES.items()),
            min=0,
        ),
    ] = None
    gpt_optimizer: Annotated[
        str | None, option(f"Optimizer: {' or '.join(RATES)}.", _GPT.optimizer)
    ] = None
    dpo: Annotated[
        bool | None,
        option("Also learn to avoid spoiled codes (DPO); takes twice as long.", None, "--dpo"),
    ] = None

    def check(self) -> None:
        """Refuse values that no training can have.

        Raises:
            UserError: there is one.
        """
        given = self.given()
        for name, choices in _CHOICES.items():
            if name in given and given[name] not in choices:
                raise _not_one_of(self.flag_of(name), given[name], choices)


@dataclass(frozen=True)
class RunArguments(Group):
    """What a run writes; fields of `FinetuneOptions`."""

    panel = "Run"

    save_every: Annotated[
        int | None,
        option(
            "Steps between checkpoints, each of which is scored.",
            FinetuneOptions.save_every,
            min=1,
            max=MOST_STEPS,
        ),
    ] = None
    tensorboard: Annotated[
        bool | None, option("Also write TensorBoard files.", None, "--tensorboard")
    ] = None


@dataclass(frozen=True)
class FinetuneArguments(Group):
    """All options of a fine-tune."""

    voice: VoiceArguments
    base: BaseArguments
    clips: ClipArguments
    recordings: RecordingArguments
    training: TrainingArguments
    gpt: GPTArguments
    run: RunArguments
