"""What Whisper hears of sentences that a voice speaks: the share of words that are wrong.

    PYTHONPATH=scripts python scripts/measure_speech.py [VOICE] [--seeds 1] [--split cut5]

Needs the extra `eval` (`make eval-demo` installs it). Whisper base also writes some right words
otherwise ("no body", "to ours"), which count as wrong.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

import mlx_vits
from mlx_vits.audio.files import resample

from eval_demo.hearing import RATE, load_recogniser
from eval_demo.words import count_word_errors, word_error_rate

SENTENCES = (
    "Hello there, how are you today?",
    "The weather is fine, and we are going to the park.",
    "Can you hear me?",
    "I would like a cup of coffee, please.",
    "She opened the door and looked outside.",
    "We have been waiting for more than two hours.",
    "My brother lives in a small house near the river.",
    "What time does the next train leave?",
    "Please write your name at the top of the page.",
    "He said that he would come back tomorrow morning.",
    "The children were playing in the garden.",
    "It is not easy to learn a new language.",
    "Thank you very much for your help.",
    "The old man walked slowly down the street.",
    "There is nothing left to say.",
    "I think we should go home now.",
    "The computer can speak any sentence that you type.",
    "They bought bread, milk, and a dozen eggs.",
    "Nobody knows what will happen next year.",
    "This voice was made from only one minute of speech.",
)


def main(
    voice: Annotated[str, typer.Argument(help="A base, a run or a file.")] = "demo",
    seeds: Annotated[int, typer.Option(help="How often each sentence is spoken.")] = 1,
    split: Annotated[str, typer.Option(help="cut0 to cut5.")] = "cut5",
) -> None:
    """Print what is heard of each sentence, and the share of wrong words of all."""
    loaded = mlx_vits.load(voice)
    counted = []
    with tempfile.TemporaryDirectory() as cache:
        hear = load_recogniser("whisper", Path(cache))
        for seed in range(seeds):
            for text in SENTENCES:
                speech = loaded.speak(text, seed=seed, split=split)
                heard = hear(resample(speech.wav, speech.sample_rate, RATE))
                counted.append(count_word_errors(text, heard))
                retries = sum(sentence.retries for sentence in speech.sentences)
                print(f"{counted[-1].errors}/{counted[-1].words}  {text}  |  {heard}  ({retries})")
    print(f"{word_error_rate(counted):.1%} of the words are wrong")


if __name__ == "__main__":
    typer.run(main)
