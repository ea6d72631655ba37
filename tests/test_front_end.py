"""A text to speak, as phonemes with features: against upstream, and what a user can get wrong."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

from mlx_vits.checkpoints.bert_file import Bert
from mlx_vits.checkpoints.state_dict import load_state
from mlx_vits.errors import DataError, UserError
from mlx_vits.models.bert import BertConfig, BertModel
from mlx_vits.text.character_tokenizer import CharacterTokenizer
from mlx_vits.text.cleaner import CleanText
from mlx_vits.text.front_end import Reading, read
from mlx_vits.text.symbols import symbols_for
from tests.support.goldens import assert_close, tensors, values


class Segment(NamedTuple):
    language: str
    text: str


def _by_script(text: str, language: str) -> list[Segment]:
    """Chinese characters and the marks after them, and everything else as English."""
    pieces = re.findall(r"[\u4e00-\u9fff]+[^A-Za-z\u4e00-\u9fff]*|[^\u4e00-\u9fff]+", text)
    return [Segment("zh" if "\u4e00" <= p[0] <= "\u9fff" else "en", p) for p in pieces]


def _bert() -> Bert:
    config = BertConfig.from_dict(values("bert", "config.json"))
    model = BertModel(config, layers=config.num_hidden_layers)
    weights = tensors("bert", "weights.safetensors")
    load_state(model, {n.removeprefix("bert."): a for n, a in weights.items()}, source="bert")
    del model.encoder.layer[-2:]
    vocabulary = values("bert_phone", "bert_phone.json")["vocab"]
    return Bert(model, CharacterTokenizer({token: i for i, token in enumerate(vocabulary)}))


@pytest.mark.parametrize("index", range(8))
def test_upstreams_phonemes_and_features(index: int) -> None:
    case = values("bert_phone", "bert_phone.json")["cases"][index]
    symbols = symbols_for("v2")
    segments = {one["text"]: one for one in case["segments"]}

    rest = iter(case["segments"])  # of both tries, where there were two

    def segment(text: str, language: str) -> list[Segment]:
        assert language == case["language"]
        found: list[Segment] = []
        while "".join(part.text for part in found) != text:
            one = next(rest)
            found.append(Segment(one["lang"], one["text"]))
        return found

    def clean(text: str, language: str, version: str, lexicon: Any) -> CleanText:
        one = segments[text]
        return CleanText([symbols[i] for i in one["phones"]], one["word2ph"], one["norm_text"])

    width = case["bert_shape"][0]
    reading = read(
        case["text"],
        case["language"],
        "v2",
        segment=segment,
        characters_to_features=_bert(),
        clean=clean,
        feature_width=width,
    )
    assert reading.ids == case["phones"]
    assert reading.norm_text == case["norm_text"]
    theirs = tensors("bert_phone", "bert_phone.safetensors")[f"{index}/bert"]
    if reading.features is None:  # for what is zeros upstream
        assert not mx.any(theirs).item()
    else:
        assert_close(reading.features, theirs, atol=1e-4)


def _read(text: str, language: str = "en", version: str = "v2", **options: Any) -> Reading:
    return read(text, language, version, segment=_by_script, **options)


def test_english_needs_no_bert() -> None:
    reading = _read("Good  morning, everyone.")
    assert reading.norm_text == "Good morning, everyone."
    assert reading.phones[:3] == ["G", "UH1", "D"]
    assert [symbols_for("v2")[i] for i in reading.ids] == reading.phones
    assert reading.features is None
    assert reading.unspoken == reading.guessed == ()


def test_a_short_text_is_led_by_a_mark() -> None:
    assert _read("Hello").phones == [".", "HH", "AH0", "L", "OW1"]
    assert len(_read("Hello there").phones) == 7


def test_what_is_not_said_is_reported() -> None:
    reading = _read("Good morning 😀 Zbrblx Привет")
    assert reading.unspoken == ("😀", *"Привет")
    assert reading.guessed == ("Zbrblx",)


def test_a_segment_without_speech_keeps_its_marks() -> None:
    def segment(text: str, language: str) -> list[Segment]:
        return [
            Segment("en", "Good morning"),
            Segment("ko", "，"),
            Segment("x", "Ж！"),
            Segment("x", "Я"),
        ]

    pytest.importorskip("mecab_ko", reason="needs the extra `ko`")
    reading = read("Good morning，Ж！Я", "auto", "v2", segment=segment)
    assert reading.phones[-2:] == [",", "!"]
    assert reading.unspoken == ("Ж", "Я")
    assert reading.features is None


@pytest.mark.parametrize("text", ["", "  ", "...", "😀！"])
def test_nothing_to_speak_is_a_sentence(text: str) -> None:
    with pytest.raises(DataError, match="has nothing that can be spoken"):
        _read(text)


def test_a_text_that_no_front_end_reads_is_a_sentence() -> None:
    with pytest.raises(DataError, match="no word that English can read"):
        _read("Привет")


@pytest.mark.parametrize(
    ("language", "version", "words"),
    [
        ("ko", "v1", "Version v1 has no symbols of Korean"),
        ("fr", "v2", "'fr' is not supported; supported: 'en', 'zh'"),
    ],
)
def test_an_unknown_language_is_a_sentence(language: str, version: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        _read("Good morning.", language, version)


def test_chinese_without_bert_names_the_command() -> None:
    for package in ("jieba", "pypinyin", "g2pM", "opencc"):
        pytest.importorskip(package, reason="needs the extra `zh`")
    with pytest.raises(UserError, match=r"fetch it with `mlx-vits download v2Pro`$"):
        _read("今天天气很好。", "zh", "v2Pro")


def test_chinese_has_its_characters_features() -> None:
    """Two phonemes a character and one a mark; English beside it has zeros."""
    for package in ("jieba", "pypinyin", "g2pM", "opencc"):
        pytest.importorskip(package, reason="needs the extra `zh`")
    asked = []

    def features(text: str) -> mx.array:
        asked.append(text)
        return mx.arange(1, len(text) + 1)[:, None] * mx.ones((1, 4))

    reading = _read("他说OK.我们出发。", "zh", characters_to_features=features, feature_width=4)
    assert asked == ["他说", "我们出发."]
    assert reading.features.shape == (4, len(reading.phones))
    first = reading.features[0].tolist()
    assert first == [1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
