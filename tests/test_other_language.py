"""Transcripts in another language than they are read as are named before they are taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_vits.checkpoints.base import Base
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.prepared import DroppedClip, read_text_lines
from mlx_vits.text.likely_language import likely_language, other_language
from tests.support.checking import check
from tests.support.tiny import make_base, make_voice, tiny_config

SPANISH = [
    "El niño que vive en la casa de la esquina no quiere ir a la escuela hoy.",
    "Mañana por la mañana vamos a salir temprano porque hay mucho tráfico.",
    "La verdad es que nunca pensé que llegaríamos tan lejos.",
    "Cuando era joven, mi abuelo trabajaba en los campos de olivos.",
]
GERMAN = [
    "Der kleine Junge wollte heute nicht in die Schule gehen.",
    "Morgen früh fahren wir mit dem Zug nach Hamburg, weil das Auto kaputt ist.",
    "Ich habe nie gedacht, dass wir so weit kommen würden.",
    "Bitte mach die Tür zu, wenn du gehst.",
]
FINNISH = [
    "Pieni poika ei halunnut mennä tänään kouluun.",
    "Oletko nähnyt avaimet, jotka jätin pöydälle?",
    "Kun isoisäni oli nuori, hän työskenteli pelloilla.",
    "Huomenna lähdemme aikaisin.",
]
SWAHILI = [
    "Mtoto mdogo hakutaka kwenda shuleni leo.",
    "Kesho asubuhi tutaondoka mapema kwa sababu barabara ina msongamano.",
    "Babu yangu alipokuwa kijana alifanya kazi shambani.",
    "Tafadhali funga mlango unapotoka.",
]
NAMES = [  # three of ten words are in no dictionary
    "Frodo and Samwise left Hobbiton before Gandalf reached Rivendell with Aragorn.",
    "Siobhan O'Shaughnessy met Krzysztof Nowakowski at the market in Ludwigshafen.",
    "Daenerys Targaryen rode Drogon to Winterfell with Tyrion Lannister.",
    "Tolkien wrote about Galadriel, Celeborn and the Noldor of Valinor.",
]
PLAIN = [
    "The boy in the corner house did not want to go to school today.",
    "He ordered a croissant, a cappuccino and a quesadilla at the cafe.",
    "I told you, amigo, no problem at all, just come to the casa tonight.",
    "No.",
]
JAPANESE = ["今日は学校に行きたくない。", "机の上に置いた鍵を見ましたか。", "これはペンです。"]
CHINESE = ["小男孩今天不想去学校。", "你看见我放在桌子上的钥匙了吗？", "请你出去的时候关门。"]
KOREAN = ["어린 소년은 오늘 학교에 가고 싶지 않았다.", "열쇠를 보았어요?", "비가 오고 있어요."]


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Base:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


def _voice(folder: Path, texts: list[str]) -> Path:
    """A clip for each text, all of them to train on."""
    make_voice(folder, clips=len(texts))
    (folder / "held_out.txt").write_text("")
    lines = [f"clip_{i}.wav\t{text}\n" for i, text in enumerate(texts)]
    (folder / "transcripts.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def _problems(folder: Path, language: str | None = None) -> list[str]:
    _, verdict = check(folder, language=language)
    found = [remark.words for remark in verdict.remarks if remark.level == "problem"]
    about = ("look like", "looks like", "English dictionary")
    return [words for words in found if any(part in words for part in about)]


@pytest.mark.parametrize(
    ("sentence", "language"),
    [
        (SPANISH[0], "Spanish"),
        (GERMAN[0], "German"),
        ("Quand il était jeune, mon grand-père travaillait dans les champs.", "French"),
        ("Domani mattina partiremo presto perché c'è molto traffico.", "Italian"),
        ("Quando era jovem, o meu avô trabalhava nos campos.", "Portuguese"),
        ("Ik had nooit gedacht dat we zo ver zouden komen.", "Dutch"),
        ("Jag trodde aldrig att vi skulle komma så långt.", "Swedish"),
        ("Jutro rano wyjedziemy, bo nie ma już za dużo czasu.", "Polish"),
        ("Anak kecil itu tidak mau pergi ke sekolah hari ini.", "Indonesian or Malay"),
        ("Bạn có thấy chìa khóa tôi để trên bàn không?", "Vietnamese"),
        ("Маленький мальчик не хотел идти в школу.", "a language in Cyrillic letters"),
        ("Ο μικρός δεν ήθελε να πάει σχολείο.", "a language in Greek letters"),
        ("我哋今日唔去學校。", "Cantonese"),
        (JAPANESE[0], "Japanese"),
        (CHINESE[0], "Chinese"),
        (KOREAN[0], "Korean"),
        (PLAIN[0], "English"),
        (NAMES[0], "English"),
    ],
)
def test_a_sentence_tells_its_language(sentence: str, language: str) -> None:
    assert likely_language(sentence) == language


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (SPANISH, "look like Spanish, but are read as English: 34% of the words (17)"),
        (GERMAN, "look like German, but are read as English"),
        (FINNISH, "look like Finnish, but are read as English"),
        (SWAHILI, "look like another language than English"),
    ],
)
def test_another_language_is_no_good_voice_in_english(
    texts: list[str], words: str, tmp_path: Path, base: Base
) -> None:
    source = _voice(tmp_path / "clips", texts)
    problems = _problems(source)
    assert len(problems) == 1
    assert words in problems[0]
    said: list[str] = []
    prepared = prepare_voice(source, tmp_path / "prepared", base, tiny_config(), notice=said.append)
    assert said == problems  # who prepares or trains without `check` hears the same
    assert words.partition(":")[0] in _problems(prepared)[0]


def test_the_warning_comes_before_the_work(tmp_path: Path, base: Base) -> None:
    events: list[str] = []
    prepare_voice(
        _voice(tmp_path / "clips", SPANISH),
        tmp_path / "prepared",
        base,
        tiny_config(),
        progress=lambda done, count, name: events.append(name),
        notice=events.append,
    )
    assert "look like Spanish" in events[0]
    assert len(events) == 1 + len(SPANISH)


@pytest.mark.parametrize("texts", [NAMES, PLAIN])
def test_names_and_rare_words_are_no_other_language(
    texts: list[str], tmp_path: Path, base: Base
) -> None:
    source = _voice(tmp_path / "clips", texts)
    assert _problems(source) == []
    said: list[str] = []
    prepare_voice(source, tmp_path / "prepared", base, tiny_config(), notice=said.append)
    assert said == []


def test_a_few_clips_of_another_language_are_named(tmp_path: Path) -> None:
    source = _voice(tmp_path / "clips", [*PLAIN, GERMAN[1], SPANISH[2]])
    assert _problems(source) == [
        "2 transcripts look like another language than English (clip_4.wav: German, clip_5.wav: "
        "Spanish): state it in the list of transcripts, or take the clips out."
    ]


@pytest.mark.parametrize(
    ("texts", "language", "words"),
    [
        (JAPANESE, "en", "looks like Japanese, but is read as English; if it is that, give --lang"),
        (["今日はiPhoneを買いました。"], "en", "looks like Japanese, but is read as English"),
        (CHINESE, "en", "looks like Chinese, but is read as English; .* --language zh"),
        (KOREAN, "en", "looks like Korean, but is read as English"),
        (["Сегодня OK, а завтра нет."], "en", "looks like a language in Cyrillic letters, but"),
        (PLAIN[:3], "ko", "looks like English, but is read as Korean; .* --language en"),
        (PLAIN[:3], "ja", "looks like English, but is read as Japanese"),
        (KOREAN, "zh", "looks like Korean, but is read as Chinese"),
        (KOREAN, "all_ja", "looks like Korean, but is read as Japanese"),
    ],
)
def test_a_text_in_a_script_that_its_language_does_not_read_is_refused(
    texts: list[str], language: str, words: str, tmp_path: Path, base: Base
) -> None:
    source = _voice(tmp_path / "clips", texts)
    options = PrepareOptions(language)
    with pytest.raises(DataError, match=rf"clip_0\.wav: The transcript .* {words}"):
        prepare_voice(source, tmp_path / "prepared", base, tiny_config(), options)
    assert "No clip is left to train on" in _problems(source, language)[0]


def test_only_the_clips_concerned_are_left_out(tmp_path: Path, base: Base) -> None:
    source = _voice(tmp_path / "clips", [*PLAIN, JAPANESE[0]])
    dropped: list[DroppedClip] = []
    prepared = prepare_voice(
        source,
        tmp_path / "prepared",
        base,
        tiny_config(),
        drop=dropped.append,
    )
    assert [clip.name for clip in dropped] == ["clip_4.wav"]
    assert "looks like Japanese" in dropped[0].reason
    assert len(read_text_lines(prepared / "2-name2text.txt")) == 4


@pytest.mark.parametrize(
    ("text", "language", "found"),
    [
        ("\n".join(CHINESE), "ja", "Chinese"),
        ("\n".join(JAPANESE), "zh", "Japanese"),
        ("今日は東京都知事選挙の結果を発表", "yue", "Japanese"),
        ("我哋今日唔去學校。", "zh", "Cantonese"),
        ("\n".join(SPANISH), "auto", "Spanish"),
        ("\n".join(SPANISH), "all_zh", "Spanish"),
        # None of these is a mistake.
        ("東京特許許可局", "ja", ""),
        ("iPhone Pro Maxを買った", "ja", ""),
        ("LG전자 TV를 샀다", "ko", ""),
        ("我用ChatGPT", "zh", ""),
        ("OK", "ko", ""),
        ("我們今天不去學校。", "yue", ""),
        ("我哋今日唔去學校。", "auto_yue", ""),
        ("\n".join(PLAIN), "all_zh", ""),
        ("这是一个test，これはテストです。", "auto", ""),
    ],
)
def test_languages_are_told_apart_in_every_setting(text: str, language: str, found: str) -> None:
    assert other_language(text, language) == found
