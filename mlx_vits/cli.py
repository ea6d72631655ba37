"""`mlx-vits`: the commands, thin over the library."""

from __future__ import annotations

from pathlib import Path

import typer

import mlx_vits
from mlx_vits import train
from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.errors import UserError
from mlx_vits.finetune import FinetuneOptions
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.screen import TerminalScreen, report_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.command("finetune")(train.main)


@app.command()
@report_errors
def prepare(
    source: Path = typer.Argument(..., help="Folder of clips with transcripts.tsv."),  # noqa: B008
    output: Path = typer.Argument(..., help="The prepared folder."),  # noqa: B008
    base: str | None = train.BASE,
    content_encoder: Path | None = train.CONTENT_ENCODER,
    held_out: int | None = train.HELD_OUT,
    language: str | None = train.LANGUAGE,
) -> None:
    """Prepare clips for training, here or in GPT-SoVITS."""
    chosen = choose_base(base, content_encoder=content_encoder)
    config = chosen.read_generator().config
    prepare_voice(
        source,
        output,
        chosen,
        config,
        language=language or FinetuneOptions.language,
        held_out=held_out,
        progress=TerminalScreen().preparing,
    )


@app.command()
@report_errors
def convert(
    voice: str = typer.Argument(..., help="A base's name, a run's folder, or a voice's file."),
    recording: Path = typer.Argument(..., help="Speech to say again."),  # noqa: B008
    text: str = typer.Argument(..., help="What is said in it."),
    output: Path = typer.Argument(..., help="The WAV to write."),  # noqa: B008
    language: str | None = train.LANGUAGE,
    refer: Path | None = typer.Option(None, help="A recording that sets the style."),  # noqa: B008
    content_encoder: Path | None = train.CONTENT_ENCODER,
    noise_scale: float = typer.Option(0.5, min=0, help="0 speaks the most likely way."),
    speed: float = typer.Option(1.0, min=0.1, max=10, help="2 halves the length."),
    seed: int = typer.Option(0, help="Of the noise."),
) -> None:
    """Speak a recording again in a voice."""
    loaded = mlx_vits.load(voice, content_encoder=content_encoder)
    heard = read_audio(recording)
    wav = loaded.convert(
        heard.wav,
        heard.rate,
        text,
        language=language or FinetuneOptions.language,
        refer=refer,
        noise_scale=noise_scale,
        speed=speed,
        seed=seed,
    )
    write_wav(output, wav, loaded.sample_rate)
    print(f"{output}: {len(wav) / loaded.sample_rate:.2f} s")


@app.command()
@report_errors
def export(
    voice: str = typer.Argument(..., help="A base's name, a run's folder, or a voice's file."),
    output: Path = typer.Argument(..., help="A .pth, a .safetensors, or a folder."),  # noqa: B008
) -> None:
    """Write a voice in another form; .pth is what GPT-SoVITS opens."""
    if output.exists():
        raise UserError(f"{output}: is there already; take it away or choose another name")
    loaded = mlx_vits.load(voice)
    loaded.save(output)
    if output.suffix == ".pth" and loaded.config.is_reduced:
        print(f"{output.name} comes from a small base: mlx_vits opens it, GPT-SoVITS cannot.")


def main() -> None:
    """The entry point of `mlx-vits`."""
    app()
