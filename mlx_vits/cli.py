"""`mlx-vits`: the commands, thin over the library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

import mlx_vits
from mlx_vits import speak, train
from mlx_vits.arguments.data import (
    BaseName,
    BatchSize,
    ClipArguments,
    ContentEncoder,
    HeldOut,
    Language,
    RecordingArguments,
    SpeakerEncoder,
    Transcripts,
)
from mlx_vits.arguments.groups import grouped
from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.audio.streams import describe_channel
from mlx_vits.checkpoints.base import choose_base, load_generator
from mlx_vits.checkpoints.download import download_base
from mlx_vits.checkpoints.gpt_file import copy_gpt, is_gpt
from mlx_vits.checkpoints.run_info import find_run
from mlx_vits.errors import UserError
from mlx_vits.finetune.data import CLIPS, PREPARED, VOICES, find_clips
from mlx_vits.finetune.handover import hand_over
from mlx_vits.finetune.new_base import write_base
from mlx_vits.preprocessing.gpt_data import make_gpt_data
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.prepared import read_speaker_vector
from mlx_vits.report.terminal import TerminalScreen, report_errors
from mlx_vits.synthesis.gpt import find_gpt_path
from mlx_vits.system.files import given_path, single_name, sweep
from mlx_vits.tools.bench.command import bench as run_bench
from mlx_vits.tools.bench.command import bench_speech
from mlx_vits.tools.check.command import check_voice
from mlx_vits.tools.check.subject import CheckOptions
from mlx_vits.tools.doctor.command import diagnose
from mlx_vits.tools.inspect.command import inspect_file
from mlx_vits.tools.listing import list_all
from mlx_vits.version import __version__

VOICE = "A run's folder or its name under runs/, a base's name, or a voice's file."

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)
app.command("finetune")(train.main)
app.command("speak")(speak.main)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"mlx_vits {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_show_version, is_eager=True
    ),
) -> None:
    """Fine-tune GPT-SoVITS voices in MLX, and let them speak."""


@app.command("list")
@report_errors
def list_() -> None:
    """List bases, prepared voices and runs, with their verdicts."""
    list_all()


@app.command()
@report_errors
@grouped
def prepare(
    clips: ClipArguments,
    recordings: RecordingArguments,
    sources: list[Path] = typer.Argument(  # noqa: B008
        ..., help="Recordings, or a folder of recordings, or of clips with transcripts."
    ),
    voice: str | None = typer.Option(None, help="Name of the voice; the source's unless given."),
    output: Path | None = typer.Option(  # noqa: B008
        None, help="Folder of the voice; voices/NAME unless given."
    ),
    base: BaseName = None,
    content_encoder: ContentEncoder = None,
    speaker_encoder: SpeakerEncoder = None,
) -> None:
    """Turn recordings into a prepared voice, to train here or in GPT-SoVITS."""
    chosen = choose_base(base, content_encoder=content_encoder, speaker_encoder=speaker_encoder)
    file = chosen.read_generator()
    config = file.config
    name = single_name(voice or sources[0].resolve().stem, "--voice")
    home, screen = output or VOICES / name, TerminalScreen()
    folder = prepare_voice(
        find_clips(
            sources,
            home / CLIPS,
            replace(recordings.options(clips), speaker=name),
            screen,
            transcripts=clips.transcripts,
        ),
        home / PREPARED,
        chosen,
        config,
        PrepareOptions(**clips.given()),
        progress=screen.preparing,
        drop=lambda clip: screen.warn(f"Left out: {clip.reason}"),
        notice=screen.warn,
    )
    try:
        make_gpt_data(folder, load_generator(file, consume=True), screen.say)
    except UserError as error:
        screen.warn(f"The GPT stage lacks something to train on: {error}.")
    screen.say(f"Prepared: {folder}")
    if config.model.is_pro and chosen.speaker_encoder is None:
        screen.warn(
            f"{folder}: has no speaker vectors (7-sv_cn/), which {config.version} trains on, as "
            f"the base {chosen.name} has no speaker encoder; give it with --speaker-encoder."
        )


@app.command()
@report_errors
def convert(
    voice: str = typer.Argument(..., help=VOICE),
    recording: Path = typer.Argument(..., help="Speech to re-speak."),  # noqa: B008
    text: str = typer.Argument(..., help="What the recording says."),
    output: Path = typer.Argument(..., help="WAV file to write."),  # noqa: B008
    language: Language = None,
    refer: list[Path] | None = typer.Option(  # noqa: B008
        None, help="Recording that sets the style; may be repeated, then styles are averaged."
    ),
    speaker_vector: list[Path] | None = typer.Option(  # noqa: B008
        None, help="Speaker vector of each --refer, for v2Pro and v2ProPlus: a file of 7-sv_cn/."
    ),
    content_encoder: ContentEncoder = None,
    noise_scale: float = typer.Option(
        0.5, min=0, help="Amount of noise; 0 gives the most likely way of speaking."
    ),
    speed: float = typer.Option(1.0, min=0.1, max=10, help="Speed; 2 halves the length."),
    seed: int = typer.Option(0, help="Random seed of the noise."),
) -> None:
    """Re-speak a recording in a voice."""
    loaded = mlx_vits.load(find_run(voice), content_encoder=content_encoder)
    heard = read_audio(recording)
    if heard.channel is not None:
        print(f"{recording}: {describe_channel(heard.channel, heard.channels)}")
    dim = loaded.config.reduced_dims.sv_dim
    vectors = [read_speaker_vector(path, dim)[None] for path in speaker_vector or ()]
    if vectors and len(vectors) != len(refer or ()):
        raise UserError("--speaker-vector: give one for each --refer, in the same order")
    wav = loaded.convert(
        heard.wav,
        heard.rate,
        text,
        language=language or PrepareOptions.language,
        refer=refer or None,
        sv_emb=vectors or None,
        noise_scale=noise_scale,
        speed=speed,
        seed=seed,
    )
    sweep(output.parent, below=False)
    write_wav(output, wav, loaded.sample_rate)
    print(f"{output}: {len(wav) / loaded.sample_rate:.2f} s")


@app.command()
@report_errors
def export(
    voice: str = typer.Argument(..., help=VOICE),
    output: Path = typer.Argument(  # noqa: B008
        ..., help="File (.pth, .safetensors; .ckpt for the GPT) or folder to write."
    ),
    resumable: bool = typer.Option(
        False, "--resumable", help="Write a run's state, from which GPT-SoVITS goes on training."
    ),
    base: bool = typer.Option(
        False, "--base", help="Write a run's nets as a base, from which voices are fine-tuned."
    ),
) -> None:
    """Write a voice, or its GPT, in another form; .pth and .ckpt are what GPT-SoVITS opens."""
    if resumable:
        for note in hand_over(given_path(find_run(voice)), output):
            print(note)
        print(f"{output}: G_ and D_ resume files; the prepared voice belongs one folder above.")
        return
    if base:
        write_base(given_path(voice), output)
        return
    if output.exists():
        raise UserError(f"{output}: is there already; take it away or choose another name")
    if output.suffix == ".ckpt" or is_gpt(given_path(voice)):
        print(f"{output}: {copy_gpt(find_gpt_path(find_run(voice)), output)}")
        return
    loaded = mlx_vits.load(find_run(voice))
    loaded.save(output)
    if output.suffix == ".pth" and loaded.config.is_reduced:
        print(f"{output.name} comes from a small base: mlx_vits opens it, GPT-SoVITS cannot.")


@app.command()
@report_errors
def download(
    version: str = typer.Argument(..., help="v1, v2, v2Pro or v2ProPlus."),
    output: Path | None = typer.Option(  # noqa: B008
        None, help="Folder of the base; weights/VERSION unless given."
    ),
    revision: str = typer.Option("main", help="Upstream's branch, tag or commit."),
    force: bool = typer.Option(False, "--force", help="Fetch files again that are already there."),
    no_bert: bool = typer.Option(
        False, "--no-bert", help="Leave out the BERT (650 MB), which only Chinese needs."
    ),
) -> None:
    """Fetch GPT-SoVITS's pretrained models, as a base to fine-tune from and to speak with."""
    say = TerminalScreen().say
    download_base(
        version, output=output, revision=revision, force=force, with_bert=not no_bert, say=say
    )


@app.command()
@report_errors
def inspect(
    file: str = typer.Argument(
        ..., help="A .pth or .safetensors of any kind, or the folder of a voice, base or run."
    ),
    against: str | None = typer.Option(
        None, help="Another one, such as its base: shows ratios to it."
    ),
    json_: bool = typer.Option(False, "--json", help="Print one JSON object, for machines."),
) -> None:
    """Say what a file holds: version, sizes, origin, what is missing, how loud each layer is."""
    inspect_file(str(find_run(file)), against, for_machines=json_)


@app.command()
@report_errors
def check(
    voice: str = typer.Argument(
        ..., help="Clips with transcripts, a prepared folder (logs/NAME too), a run, or a name."
    ),
    batch_size: BatchSize = None,
    language: Language = None,
    held_out: HeldOut = None,
    transcripts: Transcripts = None,
    json_: bool = typer.Option(False, "--json", help="Print one JSON object, for machines."),
) -> None:
    """Say whether a good voice can be expected of these clips, and what is wrong with them.

    Exit status: 0, it can be trained on; 2, training would refuse it; 1, it cannot be read.
    """
    options = CheckOptions(language, held_out, transcripts, batch_size)
    raise typer.Exit(check_voice(voice, options, for_machines=json_))


@app.command()
@report_errors
def doctor(
    json_: bool = typer.Option(False, "--json", help="Print one JSON object, for machines."),
) -> None:
    """Say what this machine runs on, and check its arithmetic: every gradient, GPU against CPU.

    Exit status: 0, all is right; 1, something is wrong, with what to do.
    """
    raise typer.Exit(diagnose(for_machines=json_))


@app.command()
@report_errors
def bench(
    version: list[str] = typer.Option(["v2"], help="Version of the model; may be repeated."),  # noqa: B008
    batch: list[int] = typer.Option([2], min=1, help="Clips per step; may be repeated."),  # noqa: B008
    seconds: float = typer.Option(4.5, min=0.1, max=60, help="Length of a clip."),
    repeat: int = typer.Option(3, min=1, help="Repetitions; medians are shown."),
    warm_up: int = typer.Option(1, min=1, help="Repetitions before them, not counted."),
    compare: str | None = typer.Option(
        None, help="torch: time the heavy parts in PyTorch as well."
    ),
    compile_: bool | None = typer.Option(
        None,
        "--compile/--no-compile",
        help="Compile the step; the default on GPUs, on CUDA unfused.",
    ),
    precision: str = typer.Option(
        "auto", help="Precision of the step: fp32 or bf16; auto is fp32."
    ),
    share: bool = typer.Option(
        False, "--share", help="Batches of 1, 2 and 4 in fp32 and bf16, as a table to paste."
    ),
    speech: bool = typer.Option(
        False, "--speech", help="Measure speaking instead: T2S, first sound, a sentence of 5 s."
    ),
    output: Path = typer.Option(Path("bench.json"), help="JSON file to write."),  # noqa: B008
) -> None:
    """Measure a training step and synthesis, or speaking, at full size on this machine."""
    if speech:
        bench_speech(version, repetitions=repeat, warm_up=warm_up, compare=compare, output=output)
        return
    run_bench(
        version,
        batch,
        seconds,
        repetitions=repeat,
        warm_up=warm_up,
        compare=compare,
        compiled=compile_,
        precision=precision,
        share=share,
        output=output,
    )


def main() -> None:
    """The entry point of `mlx-vits`."""
    app()


if __name__ == "__main__":
    main()
