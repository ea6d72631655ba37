"""Memory of a process that speaks one request after another."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

import mlx_vits

_REQUESTS, _WARM_UP = 1000, 100
_TEXT = (
    "the weather is fine and we are going to the park with a good friend who likes old books rain "
    "sun house river"
)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_thousand_requests_leave_memory_as_it_was() -> None:
    voice = mlx_vits.load("demo")
    draw, words = random.Random(1), _TEXT.split()
    for number in range(_REQUESTS):
        text = " ".join(draw.choices(words, k=draw.randint(1, 12)))
        if number % 2:
            for _ in voice.stream(text, seed=number):
                pass
        else:
            voice.speak(text, seed=number)
        if number + 1 == _WARM_UP:  # sentences of every length have been spoken by then
            before = _resident()
    after = _resident()
    print(f"resident: {before / 1e6:.0f} MB, then {after / 1e6:.0f} MB")
    assert after < 1.05 * before
