"""`python -m mlx_vits.train`: fine-tune a voice.

python -m mlx_vits.train --data-dir my_clips/ --output runs/me
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from mlx_vits import finetune
from mlx_vits.checkpoints.base import DEMO, choose_base, weights_home
from mlx_vits.checkpoints.run import MOST_STEPS
from mlx_vits.checkpoints.run_info import is_run
from mlx_vits.checkpoints.upstream_run import read_upstream_run, resume_files
from mlx_vits.errors import DataError, UserError
from mlx_vits.finetune import CHANGEABLE_TRAINING, FinetuneOptions
from mlx_vits.finetune.data import find_voice_data
from mlx_vits.finetune.handover import options_for
from mlx_vits.nn.weight_norm import NORM_SCHEMES
from mlx_vits.preprocessing.clips import ClipOptions
from mlx_vits.preprocessing.recognition import DEFAULT_MODEL
from mlx_vits.preprocessing.slicer import FLAGS
from mlx_vits.report.terminal import TerminalScreen, report_errors
from mlx_vits.system.json_files import read_json
from mlx_vits.training.precision import PRECISIONS
from mlx_vits.training.vits_trainer import CHECKPOINTING, VITSTrainingConfig

RUNS = Path("runs")
SUGGESTED = "finetune.json"  # beside a voice's clips: options of its own

_CHOICES = {"train": ("all", "decoder"), "weight_norm": NORM_SCHEMES, "precision": PRECISIONS}
_CHOICES["checkpoint_activations"] = CHECKPOINTING
_CHANGEABLE = {"save_every", "tensorboard", *CHANGEABLE_TRAINING}  # on --resume
# What the files of a run of GPT-SoVITS decide, when it is resumed.
_TAKEN_OVER_FIXED = {"pretrained_d", "weight_norm", "train", "held_out"}
_TAKEN_OVER_FIXED |= {flag[2:].replace("-", "_") for flag in FLAGS.values()}
_RUN_OPTIONS = ("language", "held_out", "transcripts", "strict", "save_every", "tensorboard")
_DEFAULT = VITSTrainingConfig()


def _option(text: str, default: Any = None, **more: Any) -> Any:
    """An option that is None unless given, so that a voice can suggest its own value."""
    shown = False if default is None else str(default)
    return typer.Option(None, help=text, show_default=shown, **more)


VOICE = _option("Voice: a name under voices/ or weights/, a folder of clips, or a recording.")
DATA_DIR = _option("The same as a folder: clips with transcripts, or a prepared folder.")
BASE = _option("Base: a name under weights/, or its folder.", "demo for demo, else v2, else demo")
PRETRAINED = _option("Pretrained generator: s2G .pth, or safetensors.")
PRETRAINED_D = _option("Pretrained discriminator: s2D .pth, or safetensors.")
CONTENT_ENCODER = _option("Folder of the content encoder (chinese-hubert-base).")
OUTPUT = _option("Folder of the run.", "runs/NAME")
EPOCHS = _option("Passes over the clips, repeated to about 100.", _DEFAULT.epochs, min=1)
STEPS = _option("Updates in all; overrides --epochs.", min=1)
BATCH_SIZE = _option("Clips that are computed at a time.", _DEFAULT.batch_size, min=1)
ACCUMULATE = _option("Such batches a step, for larger ones than fit.", _DEFAULT.accumulate, min=1)
LR_G = _option("Learning rate of the generator, per step.", _DEFAULT.lr_g, min=0)
LR_D = _option("Learning rate of the discriminator, per step.", _DEFAULT.lr_d, min=0)
TEXT_RATE = _option(
    "The text side learns at this share of --lr-g.", _DEFAULT.text_low_lr_rate, min=0
)
PULL = _option(
    "Strength of the pull toward the pretrained weights, 0 for none.",
    _DEFAULT.pretrained_reg_strength,
    min=0,
)
BLEND = _option(
    "The voice goes this share of the way from the pretrained weights to the trained ones.",
    _DEFAULT.blend,
    min=0,
    max=1,
)
BLEND_PRIOR = _option(
    "The same for enc_p, enc_q and flow, which is worth more to a small base.",
    "as --blend",
    min=0,
    max=1,
)
SEGMENT = _option("Samples decoded of each clip, at 32 kHz.", _DEFAULT.segment_size, min=1280)
LOG_EVERY = _option("Steps between two lines on screen.", TerminalScreen.LOG_EVERY, min=1)
SAVE_EVERY = _option(
    "Steps between two checkpoints, each with a score.",
    FinetuneOptions.save_every,
    min=1,
    max=MOST_STEPS,
)
SEED = _option("Of batches, noise, slices, dropout.", _DEFAULT.seed, min=0, max=2**31 - 1)
RESUME = _option("Continue the run in this folder, ours or GPT-SoVITS's logs/NAME/logs_s2_VERSION.")
TRAIN = _option("What is trained: all, or decoder (dec and ref_enc).", _DEFAULT.train)
WEIGHT_NORM = _option(f"Layers with weight norm: {', '.join(NORM_SCHEMES)}.", _DEFAULT.weight_norm)
PRECISION = _option("Compute in fp32, bf16, or auto, which is fp32.", _DEFAULT.precision)
CHECKPOINT = _option(
    "Compute blocks of the nets twice to save memory: on, off, or auto, where memory is short.",
    _DEFAULT.checkpoint_activations,
)
COMPILE = typer.Option(
    None,
    "--compile/--no-compile",
    help="Compile the step, fused for the device at its first use; on CUDA fused only if given.",
    show_default="on a GPU",
)
BIAS_CORRECTION = typer.Option(
    None,
    "--bias-correction/--no-bias-correction",
    help="Bias correction of AdamW, which PyTorch always does.",
    show_default="on",
)
HELD_OUT = _option(
    "Clips, from the last, only listened to.", "a tenth of 4 or more, at most 20", min=0
)
SPEAKER_ENCODER = _option("Speaker encoder of v2Pro and v2ProPlus (ERes2NetV2).")
TRANSCRIPTS = _option("File of the transcripts, where it is not the one beside the clips.")
STRICT = typer.Option(
    None, "--strict", help="Refuse a clip that cannot be used; else leave it out."
)
ASR_MODEL = _option("Whisper's model, where transcripts have to be recognised.", DEFAULT_MODEL)
THRESHOLD = _option(
    "Recordings are cut where they are quieter, in dB re full scale.",
    "-34, or as before",
    min=-100,
    max=0,
)
MIN_LENGTH = _option("Of a slice, in ms.", "4000, or as before", min=40)
MIN_INTERVAL = _option("Of a pause to cut at, in ms.", "300, or as before", min=40)
MAX_SIL_KEPT = _option(
    "Of a pause, left at either end of a slice, in ms.", "500, or as before", min=10
)
LANGUAGE = _option("Language of what is said.", "en; recognised speech tells its own")
TENSORBOARD = typer.Option(None, "--tensorboard", help="Also write TensorBoard files.")


@report_errors
def main(
    voice: str | None = VOICE,
    data_dir: Path | None = DATA_DIR,
    base: str | None = BASE,
    pretrained: Path | None = PRETRAINED,
    pretrained_d: Path | None = PRETRAINED_D,
    content_encoder: Path | None = CONTENT_ENCODER,
    speaker_encoder: Path | None = SPEAKER_ENCODER,
    output: Path | None = OUTPUT,
    epochs: int | None = EPOCHS,
    steps: int | None = STEPS,
    batch_size: int | None = BATCH_SIZE,
    accumulate: int | None = ACCUMULATE,
    lr_g: float | None = LR_G,
    lr_d: float | None = LR_D,
    text_low_lr_rate: float | None = TEXT_RATE,
    pretrained_reg: float | None = PULL,
    blend: float | None = BLEND,
    blend_prior: float | None = BLEND_PRIOR,
    segment_size: int | None = SEGMENT,
    log_every: int | None = LOG_EVERY,
    save_every: int | None = SAVE_EVERY,
    seed: int | None = SEED,
    resume: Path | None = RESUME,
    train: str | None = TRAIN,
    weight_norm: str | None = WEIGHT_NORM,
    bias_correction: bool | None = BIAS_CORRECTION,
    precision: str | None = PRECISION,
    compiled: bool | None = COMPILE,
    checkpoint_activations: str | None = CHECKPOINT,
    held_out: int | None = HELD_OUT,
    language: str | None = LANGUAGE,
    transcripts: Path | None = TRANSCRIPTS,
    strict: bool | None = STRICT,
    asr_model: str | None = ASR_MODEL,
    threshold: float | None = THRESHOLD,
    min_length: int | None = MIN_LENGTH,
    min_interval: int | None = MIN_INTERVAL,
    max_sil_kept: int | None = MAX_SIL_KEPT,
    tensorboard: bool | None = TENSORBOARD,
) -> None:
    """Fine-tune a GPT-SoVITS voice from about one minute of speech."""
    given = {name: value for name, value in locals().items() if value is not None}
    for name, choices in _CHOICES.items():
        if given.get(name, choices[0]) not in choices:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {given[name]}: is not one of {', '.join(choices)}")
    _check_training(given)
    screen = TerminalScreen(given.pop("log_every", TerminalScreen.LOG_EVERY))
    try:
        if resume is not None:
            _resume(given, screen)
        else:
            options = _options(given, screen)
            judge = options.base.discriminator
            if "pretrained" in given and "pretrained_d" not in given and judge is not None:
                screen.say(f"The discriminator beside it is taken as well: {judge}.")
            finetune.start(options, screen)
    finally:
        screen.close()


def _check_training(given: dict[str, Any]) -> None:
    """Refuse numbers that no training can have."""
    if "pretrained_reg" in given:
        given["pretrained_reg_strength"] = given["pretrained_reg"]
    try:
        VITSTrainingConfig(**{key: given[key] for key in vars(_DEFAULT) if key in given})
    except ValueError as fault:
        name, _, words = str(fault).partition(" ")
        flag = name.removesuffix("_strength").replace("_", "-")
        raise UserError(f"--{flag} {words}; choose another value") from fault


def _resume(given: dict[str, Any], screen: TerminalScreen) -> None:
    folder = given.pop("resume")
    if not is_run(folder) and resume_files(folder) is not None:
        _take_over(folder, given, screen)
        return
    fixed = sorted(set(given) - _CHANGEABLE)
    if fixed:
        flag = fixed[0].replace("_", "-")
        raise UserError(f"--{flag}: cannot be changed when a run is resumed; leave it out")
    finetune.resume(folder, screen, **given)


def _take_over(folder: Path, given: dict[str, Any], screen: TerminalScreen) -> None:
    """A run of GPT-SoVITS, gone on with as one of our own."""
    fixed = sorted(set(given) & _TAKEN_OVER_FIXED)
    if fixed:
        flag = fixed[0].replace("_", "-")
        raise UserError(
            f"--{flag}: cannot be chosen when a run of GPT-SoVITS is resumed; leave it out"
        )
    run = read_upstream_run(folder)
    options = options_for(folder, run, given, RUNS)
    for note in run.notes:
        screen.warn(note)
    rates = options.training
    screen.say(
        f"{run.path.name}: {run.iteration} epochs are done; on at the learning rates "
        f"{rates.lr_g:g} and {rates.lr_d:g} before decay."
    )
    finetune.take_over(options, run, screen)


def _options(given: dict[str, Any], screen: TerminalScreen) -> FinetuneOptions:
    name, folder = find_voice_data(
        given.get("voice"),
        given.get("data_dir"),
        ClipOptions(
            given.get("language"),
            given.get("asr_model", DEFAULT_MODEL),
            slicing=slicing(given),
            strict=bool(given.get("strict")),
        ),
        screen,
        transcripts=given.get("transcripts"),
    )
    wished = {key: value for key, value in given.items() if key in vars(_DEFAULT)}
    suggested = suggested_options(folder)
    if "epochs" in wished:
        suggested.pop("steps", None)
    parts = ("pretrained", "pretrained_d", "content_encoder", "speaker_encoder")
    is_demo = folder.resolve() == (weights_home() / DEMO / "voice").resolve()
    return FinetuneOptions(
        voice=name,
        data=folder,
        base=choose_base(given.get("base"), for_demo=is_demo, **{k: given.get(k) for k in parts}),
        output=given.get("output", RUNS / name),
        training=VITSTrainingConfig(**(suggested | wished)),
        **{key: given[key] for key in _RUN_OPTIONS if key in given},
    )


def slicing(given: Mapping[str, Any]) -> dict[str, float]:
    """The fields of `SliceSettings` among the command line's options."""
    options = {name: given.get(flag[2:].replace("-", "_")) for name, flag in FLAGS.items()}
    return {name: value for name, value in options.items() if value is not None}


def suggested_options(folder: Path) -> dict[str, Any]:
    """Options that a voice's folder has for itself; those on the command line win."""
    path = folder / SUGGESTED
    if not path.is_file():
        return {}
    cure = "mend it or take it away"
    config = read_json(path, VITSTrainingConfig, error=DataError, cure=cure)
    return {name: value for name, value in asdict(config).items() if value != vars(_DEFAULT)[name]}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    app()
