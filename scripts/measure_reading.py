"""Measures how long each language's front end takes for 300,000 characters of several kinds.

    python scripts/measure_reading.py [--language en] [--characters 300000]

Prints seconds a kind. Dictionaries are loaded before the clock starts.
"""

from __future__ import annotations

import time

import typer

import mlx_vits  # noqa: F401  (before mlx, as it chooses the BLAS)
from mlx_vits.errors import UserError
from mlx_vits.text.cleaner import clean_text

SENTENCES = {
    "en": "The quick brown fox didn't read 12 of the 3,500 books that lay there on 5 May 2021. ",
    "zh": "我们在2021年5月3日去了银行，花了3.5元，然后就高高兴兴地回家了。",
    "yue": "我哋喺2021年5月3日去咗銀行，用咗3.5蚊，跟住就開開心心咁返屋企。",
    "ja": "私たちは2021年5月3日に銀行へ行って、3.5ドルを使いました。",
    "ko": "우리는 2021년 5월 3일에 은행에 가서 3,500원을 썼습니다. ",
}
WORDS = {"en": "word ", "zh": "银行长了", "yue": "銀行長咗", "ja": "銀行です", "ko": "은행입니다 "}
KINDS = ("sentences", "words", "digits", "marks", "capitals", "emoji")


def text_of(kind: str, language: str, count: int) -> str:
    """A text of about so many characters."""
    unit = {
        "sentences": SENTENCES[language],
        "words": WORDS[language],
        "digits": WORDS[language] + "1234567 ",
        "marks": WORDS[language] + "...,,,!!!???---'''\"\"\"((( ",
        "capitals": WORDS[language] + "NO WAY FBI TikTok ",
        "emoji": WORDS[language] + "😀™→ ",
    }[kind]
    return (unit * (count // len(unit) + 1))[:count]


def main(language: str | None = None, characters: int = 300_000) -> None:
    """Measure, and print a line for each language."""
    for code in [language] if language else SENTENCES:
        try:
            clean_text(SENTENCES[code], code)
        except UserError as error:
            print(f"{code}: {error}")
            continue
        found = []
        for kind in KINDS:
            text = text_of(kind, code, characters)
            start = time.perf_counter()
            clean_text(text, code)
            found.append(f"{kind} {time.perf_counter() - start:.2f}")
        print(f"{code}: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    typer.run(main)
