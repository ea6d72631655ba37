"""`mlx-vits speak`, also `python -m mlx_vits.speak`: a text read aloud, into a file or played."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import typer

import mlx_vits
from mlx_vits.audio.playing import Player
from mlx_vits.audio.writing import SoundFile
from mlx_vits.errors import UserError
from mlx_vits.report.terminal import report_errors
from mlx_vits.synthesis.request import Piece, SpeechRequest
from mlx_vits.synthesis.speaking import (
    Speaker,
    StoredReference,
    faults,
    own_language,
    stored_reference,
    stream,
)
from mlx_vits.synthesis.text_marks import is_spoken
from mlx_vits.synthesis.voice import Voice
from mlx_vits.system.text_files import read_text

RUNS = Path("runs")
_LINE_NAME = "{:03d}.wav"


@report_errors
def main(
    voice: str = typer.Argument(
        ..., help="A run's folder or its name under runs/, a base's name, or a voice's file."
    ),
    text: str | None = typer.Argument(None, help="What to say; see --file for longer texts."),
    file: str | None = typer.Option(
        None, "--file", "-f", help="Text file to read, UTF-8; - for standard input."
    ),
    output: str | None = typer.Option(
        None,
        "--output",
        "-o",
        help="File to write (.wav, .flac, .ogg, .opus, .mp3), or FOLDER/ for a file a line.",
    ),
    play: bool = typer.Option(False, "--play", help="Play the speech."),
    stream_: bool = typer.Option(
        False, "--stream", help="Make each sentence in chunks, so that sound begins sooner."
    ),
    language: str | None = typer.Option(
        None, help="Language of the text: en, zh, ja, ko, yue, all_zh, ..., auto."
    ),
    reference: Path | None = typer.Option(  # noqa: B008
        None, help="Recording of 3 to 10 s to speak like; the voice's own unless given."
    ),
    reference_text: str | None = typer.Option(None, help="What that recording says."),
    reference_language: str | None = typer.Option(None, help="Its language."),
    aux_reference: list[Path] | None = typer.Option(  # noqa: B008
        None, help="Further recording, whose timbre is averaged in; may be repeated."
    ),
    gpt: Path | None = typer.Option(  # noqa: B008
        None, help="T2S model (.ckpt or folder); the voice's or its base's unless given."
    ),
    content_encoder: Path | None = typer.Option(  # noqa: B008
        None, help="Folder of the content encoder; the base's unless given."
    ),
    lexicon: Path | None = typer.Option(  # noqa: B008
        None, help="File of words and their phonemes, one a line."
    ),
    speed: float = typer.Option(1.0, help="Speed, 0.25 to 4; 2 halves the length."),
    pause: float = typer.Option(0.3, help="Seconds of silence after each sentence."),
    split: str = typer.Option("cut5", help="How the text is cut: cut0 to cut5."),
    top_k: int = typer.Option(15, help="Codes to draw from, at most."),
    top_p: float = typer.Option(1.0, help="Probability to draw from, at most."),
    temperature: float = typer.Option(1.0, help="Above 1 livelier, below 1 steadier."),
    repetition_penalty: float = typer.Option(1.35, help="Above 1: against repetition."),
    seed: int = typer.Option(0, help="The same seed gives the same sound."),
    verify: bool = typer.Option(
        False, "--verify", help="Check each sentence with Whisper, and say it again if need be."
    ),
    force: bool = typer.Option(False, "--force", help="Replace a file that is there already."),
) -> None:
    """Read a text aloud.

    Exit status: 0, spoken; 1, something is missing or wrong, with what to do.
    """
    lines = _lines(text, file)
    if output is None and not play:
        raise UserError("say where the speech goes: -o FILE, -o FOLDER/ or --play")
    loaded = mlx_vits.load(_known_run(voice), content_encoder=content_encoder, gpt=gpt)
    speaker = loaded.speaker
    if lexicon is not None:
        speaker.use_lexicon(lexicon)
    if verify:
        speaker.verify_with_whisper()
    spoken_language = language or own_language(speaker)
    request = SpeechRequest(
        text="",
        text_lang=spoken_language,
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        speed_factor=speed,
        fragment_interval=pause,
        text_split_method=split,
        seed=seed,
        return_fragment=not stream_,
        streaming_mode=stream_,
    )
    given = stored_reference(reference, reference_text, reference_language or spoken_language)
    job = _Job(loaded, request, given, aux_reference or [], play=play, overwrite=force)
    if output is not None and output.endswith("/"):
        for number, line in enumerate(lines, start=1):
            job.speak(line, Path(output) / _LINE_NAME.format(number))
    else:
        job.speak("\n".join(lines), Path(output) if output else None)


class _Job:
    """Speak texts, and say how far it is."""

    def __init__(
        self,
        voice: Voice,
        request: SpeechRequest,
        reference: StoredReference | None,
        auxiliary: list[Path],
        *,
        play: bool,
        overwrite: bool,
    ):
        self._speaker: Speaker = voice.speaker
        self._request, self._reference, self._auxiliary = request, reference, auxiliary
        self._rate, self._play, self._overwrite = voice.sample_rate, play, overwrite

    def speak(self, text: str, output: Path | None) -> None:
        begun = time.monotonic()
        samples = done = 0
        with ExitStack() as stack:
            sinks: list[SoundFile | Player] = []
            if output is not None:
                file = SoundFile(output, self._rate, overwrite=self._overwrite)
                sinks.append(stack.enter_context(file))
            if self._play:
                sinks.append(stack.enter_context(Player(self._rate)))
            for piece in self._pieces(text):
                for sink in sinks:
                    sink.write(piece.wav)
                samples += len(piece.wav)
                done += sum(len(sentence.text) for sentence in piece.sentences)
                for warning in [*self._speaker.take_warnings(), *faults(piece.sentences)]:
                    print(f"! {warning}", file=sys.stderr)
                if piece.sentences and done < len(text):
                    passed = time.monotonic() - begun
                    left = passed / done * (len(text) - done)
                    print(
                        f"{min(done, len(text))}/{len(text)} characters  "
                        f"{samples / self._rate:.1f} s spoken  {left:.0f} s left",
                        file=sys.stderr,
                    )
        passed = time.monotonic() - begun
        seconds = samples / self._rate
        print(f"{output or 'played'}: {seconds:.2f} s, made in {passed:.2f} s")

    def _pieces(self, text: str) -> Iterator[Piece]:
        request = replace(self._request, text=text)
        return stream(self._speaker, request, self._reference, self._auxiliary)


def _known_run(voice: str) -> str:
    """Take a name under `runs/` for that run's folder."""
    run = RUNS / voice
    return str(run) if len(Path(voice).parts) == 1 and (run / "run.json").is_file() else voice


def _lines(text: str | None, file: str | None) -> list[str]:
    """Return the lines that have something to say.

    Raises:
        UserError: no text is given, or two, or it cannot be read.
    """
    if (text is None) == (file is None):
        raise UserError("give either a text, or --file FILE (- for standard input)")
    if file is not None:
        text = sys.stdin.read() if file == "-" else read_text(Path(file))
    lines = [line for line in (text or "").splitlines() if is_spoken(line)]
    if not lines:
        raise UserError("the text has nothing to speak; give at least one word")
    return lines


if __name__ == "__main__":
    typer.run(main)
