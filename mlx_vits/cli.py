"""`mlx-vits`: the commands, thin over the library."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import typer

import mlx_vits
from mlx_vits import train
from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.audio.streams import describe_channel
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.checkpoints.download import download_base
from mlx_vits.errors import UserError
from mlx_vits.finetune import FinetuneOptions
from mlx_vits.finetune.data import CLIPS, PREPARED, VOICES
from mlx_vits.finetune.handover import hand_over
from mlx_vits.preprocessing.clips import ClipOptions, make_clips, needs_clips
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.prepared import read_speaker_vector
from mlx_vits.preprocessing.recognition import DEFAULT_MODEL
from mlx_vits.report.terminal import TerminalScreen, report_errors
from mlx_vits.system.files import given_path, single_name, sweep
from mlx_vits.tools.bench.command import bench as run_bench
from mlx_vits.tools.check.command import check_voice
from mlx_vits.tools.check.subject import CheckOptions
from mlx_vits.tools.doctor.command import diagnose
from mlx_vits.tools.inspect.as_json import as_json
from mlx_vits.tools.inspect.facts import gather
from mlx_vits.tools.inspect.reading import read_subject
from mlx_vits.tools.inspect.show import show

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.command("finetune")(train.main)


@app.command()
@report_errors
def prepare(
    sources: list[Path] = typer.Argument(  # noqa: B008
        ..., help="Recordings, or a folder of recordings, or of clips with transcripts."
    ),
    voice: str | None = typer.Option(None, help="Its name; the source's otherwise."),
    output: Path | None = typer.Option(  # noqa: B008
        None, help="The voice's folder; voices/NAME otherwise."
    ),
    base: str | None = train.BASE,
    content_encoder: Path | None = train.CONTENT_ENCODER,
    speaker_encoder: Path | None = train.SPEAKER_ENCODER,
    held_out: int | None = train.HELD_OUT,
    language: str | None = train.LANGUAGE,
    transcripts: Path | None = train.TRANSCRIPTS,
    strict: bool = typer.Option(False, help="Refuse a clip that cannot be used."),
    asr_model: str = typer.Option(DEFAULT_MODEL, help="Whisper's model, where it has to listen."),
    threshold: float | None = train.THRESHOLD,
    min_length: int | None = train.MIN_LENGTH,
    min_interval: int | None = train.MIN_INTERVAL,
    max_sil_kept: int | None = train.MAX_SIL_KEPT,
) -> None:
    """Turn recordings into a prepared voice, to train here or in GPT-SoVITS."""
    options = ClipOptions(language, asr_model, slicing=train.slicing(locals()), strict=strict)
    chosen = choose_base(base, content_encoder=content_encoder, speaker_encoder=speaker_encoder)
    config = chosen.read_generator().config
    name = single_name(voice or sources[0].resolve().stem, "--voice")
    home = output or VOICES / name
    screen = TerminalScreen()
    clips = sources[0]
    if transcripts is not None and len(sources) == 1 and clips.is_dir():
        options.refuse_slicing(clips)  # clips whose transcripts lie elsewhere
    elif needs_clips(sources):
        clips = home / CLIPS
        made = make_clips(
            sources,
            clips,
            replace(options, speaker=name),
            transcripts=transcripts,
            cutting=screen.cutting,
            listening=screen.listening,
            notice=screen.warn,
        )
        screen.say(f"Transcripts: {made}; correct them and run this again.")
    else:
        options.refuse_slicing(clips)
    folder = prepare_voice(
        clips,
        home / PREPARED,
        chosen,
        config,
        PrepareOptions(language or FinetuneOptions.language, held_out, transcripts, strict),
        progress=screen.preparing,
        drop=lambda clip: screen.warn(f"Left out: {clip.reason}"),
        notice=screen.warn,
    )
    screen.say(f"Prepared: {folder}")
    if config.model.is_pro and chosen.speaker_encoder is None:
        screen.warn(
            f"{folder}: has no speaker vectors (7-sv_cn/), which {config.version} trains on, as "
            f"the base {chosen.name} has no speaker encoder; give it with --speaker-encoder."
        )


@app.command()
@report_errors
def convert(
    voice: str = typer.Argument(..., help="A base's name, a run's folder, or a voice's file."),
    recording: Path = typer.Argument(..., help="Speech to say again."),  # noqa: B008
    text: str = typer.Argument(..., help="What is said in it."),
    output: Path = typer.Argument(..., help="The WAV to write."),  # noqa: B008
    language: str | None = train.LANGUAGE,
    refer: list[Path] | None = typer.Option(  # noqa: B008
        None, help="A recording that sets the style; several are averaged."
    ),
    speaker_vector: list[Path] | None = typer.Option(  # noqa: B008
        None, help="Of each --refer, for v2Pro and v2ProPlus: a file of 7-sv_cn/."
    ),
    content_encoder: Path | None = train.CONTENT_ENCODER,
    noise_scale: float = typer.Option(0.5, min=0, help="0 speaks the most likely way."),
    speed: float = typer.Option(1.0, min=0.1, max=10, help="2 halves the length."),
    seed: int = typer.Option(0, help="Of the noise."),
) -> None:
    """Speak a recording again in a voice."""
    loaded = mlx_vits.load(voice, content_encoder=content_encoder)
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
        language=language or FinetuneOptions.language,
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
    voice: str = typer.Argument(..., help="A base's name, a run's folder, or a voice's file."),
    output: Path = typer.Argument(..., help="A .pth, a .safetensors, or a folder."),  # noqa: B008
    resumable: bool = typer.Option(
        False, "--resumable", help="A run's state, for GPT-SoVITS to go on training from."
    ),
) -> None:
    """Write a voice in another form; .pth is what GPT-SoVITS opens."""
    if resumable:
        for note in hand_over(given_path(voice), output):
            print(note)
        print(f"{output}: G_ and D_ resume files; the prepared voice belongs one folder above.")
        return
    if output.exists():
        raise UserError(f"{output}: is there already; take it away or choose another name")
    loaded = mlx_vits.load(voice)
    loaded.save(output)
    if output.suffix == ".pth" and loaded.config.is_reduced:
        print(f"{output.name} comes from a small base: mlx_vits opens it, GPT-SoVITS cannot.")


@app.command()
@report_errors
def download(
    version: str = typer.Argument(..., help="v1, v2, v2Pro or v2ProPlus."),
    output: Path | None = typer.Option(  # noqa: B008
        None, help="The base's folder; weights/VERSION otherwise."
    ),
    revision: str = typer.Option("main", help="Upstream's branch, tag or commit."),
    force: bool = typer.Option(False, "--force", help="Fetch again what is there already."),
) -> None:
    """Fetch GPT-SoVITS's pretrained models, as a base to fine-tune from."""
    say = TerminalScreen().say
    download_base(version, output=output, revision=revision, force=force, say=say)


@app.command()
@report_errors
def inspect(
    file: str = typer.Argument(
        ..., help="A .pth or .safetensors of any kind, or the folder of a voice, base or run."
    ),
    against: str | None = typer.Option(None, help="Another, such as its base: adds ratios to it."),
    json_: bool = typer.Option(False, "--json", help="One JSON object, for machines."),
) -> None:
    """Say what a file holds: version, sizes, origin, what is missing, how loud each layer is."""
    other = read_subject(against) if against is not None else None
    facts = gather(read_subject(file), other)
    if json_:
        print(json.dumps(as_json(facts), indent=1))
    else:
        show(facts)


@app.command()
@report_errors
def check(
    voice: str = typer.Argument(
        ..., help="Clips with transcripts, a prepared folder (logs/NAME too), a run, or a name."
    ),
    batch_size: int | None = train.BATCH_SIZE,
    language: str | None = train.LANGUAGE,
    held_out: int | None = train.HELD_OUT,
    transcripts: Path | None = train.TRANSCRIPTS,
    json_: bool = typer.Option(False, "--json", help="One JSON object, for machines."),
) -> None:
    """Say whether a good voice can be expected of these clips, and what is wrong with them.

    Exit status: 0, it can be trained on; 2, training would refuse it; 1, it cannot be read.
    """
    options = CheckOptions(language, held_out, transcripts, batch_size)
    raise typer.Exit(check_voice(voice, options, for_machines=json_))


@app.command()
@report_errors
def doctor(
    json_: bool = typer.Option(False, "--json", help="One JSON object, for machines."),
) -> None:
    """Say what this machine runs on, and check its arithmetic: every gradient, GPU against CPU.

    Exit status: 0, all is right; 1, something is wrong, with what to do.
    """
    raise typer.Exit(diagnose(for_machines=json_))


@app.command()
@report_errors
def bench(
    version: list[str] = typer.Option(["v2"], help="Of the model; may be given again."),  # noqa: B008
    batch: list[int] = typer.Option([2], min=1, help="Clips a step; may be given again."),  # noqa: B008
    seconds: float = typer.Option(4.5, min=0.1, max=60, help="Length of a clip."),
    repeat: int = typer.Option(3, min=1, help="Repetitions; medians are shown."),
    warm_up: int = typer.Option(1, min=1, help="Repetitions before them, which do not count."),
    compare: str | None = typer.Option(None, help="torch: PyTorch's time of the heavy parts."),
    compile_: bool | None = typer.Option(
        None, "--compile/--no-compile", help="The step; on GPUs by default, on CUDA unfused."
    ),
    precision: str = typer.Option("auto", help="Of the step: fp32, bf16, or auto, which is fp32."),
    share: bool = typer.Option(
        False, "--share", help="Batches of 1, 2 and 4 in fp32 and bf16, as a table to paste."
    ),
    output: Path = typer.Option(Path("bench.json"), help="The JSON to write."),  # noqa: B008
) -> None:
    """Measure a training step and synthesis at full size on this machine."""
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
