"""The front ends of Chinese, Japanese, Korean, Cantonese and of mixed text.

Expectations come from outside the code: the dictionary readings of common words and the rules of
tone change that every course of Mandarin teaches, NHK's pitch accents, the examples that the
Standard Pronunciation of Korean itself gives, and Jyutping of words.hk. What needs a package of an
extra is skipped where it is not installed; how numbers are read needs none.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from typing import NamedTuple

import pytest

from mlx_vits.errors import DataError
from mlx_vits.system.installing import install_command
from mlx_vits.text import (
    cantonese,
    clean_text,
    japanese,
    korean,
    korean_sounds,
    phonemes_to_ids,
    supported_languages,
    symbols_for,
)
from mlx_vits.text.chinese_marks import keep_marks, plain_characters, spell_symbols
from mlx_vits.text.chinese_normalizer import spell_numbers
from mlx_vits.text.chinese_words import listed_words, pinyin_table
from mlx_vits.text.mixed import clean_mixed, split_languages

PACKAGES = {
    "en": (),
    "zh": ("jieba", "pypinyin", "g2pM", "opencc"),
    "ja": ("pyopenjtalk",),
    "ko": ("mecab_ko",),
    "yue": ("ToJyutping",),
}
EVERY_PACKAGE = [package for packages in PACKAGES.values() for package in packages]


def needs(*languages: str) -> pytest.MarkDecorator:
    """Skips a test where a package of one of the extras is missing."""
    missing = [
        f"{package} (extra {language})"
        for language in languages
        for package in PACKAGES[language]
        if importlib.util.find_spec(package) is None
    ]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def skip_without(code: str) -> None:
    """Skips the test where a package of a language, or of those that "auto" finds, is missing."""
    for extra in ("zh", "ja", "ko") if code == "auto" else (code.removeprefix("all_"),):
        for package in PACKAGES[extra]:
            pytest.importorskip(package, reason=f"{package} (extra {extra}) is not installed")


def spoken(text: str, language: str, version: str = "v2") -> str:
    return " ".join(clean_text(text, language, version).phonemes)


class Row(NamedTuple):
    """A text, what is expected of it, and why."""

    text: str
    expected: str
    why: str = ""


def rows(*table: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", table, ids=[row.text.strip() for row in table])


# --- Chinese: numbers in words, without any package ------------------------------------------
@rows(
    Row("2024-03-15，2024/3/5", "二零二四年三月十五日,二零二四年三月五日", "dates in digits"),
    Row("98年3月，10年后，80年代", "九八年三月,十年后,八十年代", "a short year, a span, a decade"),
    Row("8:30-12:05，2:05", "八点半至十二点零五分,两点零五分", "times"),
    Row("比分3:2，-3°C到25℃", "比分三比二,零下三度到二十五度", "a score, temperatures"),
    Row("增长3.5%，-2%，5000年", "增长百分之三点五,负百分之二,五千年", "percentages; no year"),
    Row("10-20个，3~5天", "十到二十个,三到五天", "ranges"),
    Row("2个，2号，2月2日，12个", "两个,二号,二月二日,十二个", "两 counts, 二 numbers"),
    Row("2000元，2万人，200块", "两千元,两万人,二百块", "两 before 千 and 万"),
    Row("第2名，13812345678", "第二名,幺三八幺二三四五六七八", "a rank, a telephone"),
    Row("010-12345678，拨110", "零幺零,幺二三四五六七八,拨幺幺零", "a line, a service"),
    Row("$100，¥1,234.5，€3.5亿", "一百美元,一千二百三十四点五元,三点五亿欧元", "money"),
    Row("1/2，2 1/2，½", "二分之一,二又二分之一,二分之一", "fractions"),
    Row("3+5=8，5-3=2，10³", "三加五等于八,五减三等于二,十的三次方", "sums and powers"),
    Row("5kg，3.5cm，10m²，100km/h", "五千克,三点五厘米,十平方米,一百千米每小时", "units"),
    Row("127人/平方公里，1.2.3", "一百二十七人每平方公里,一点二点三", "per; a version"),
    Row("300，1949，12345，007", "三百,一九四九,幺二三四五,零零七", "a count, a year, codes"),
    Row("１２个①Ⅳα1,000,000", "十二个一四阿尔法一百万", "full width, circled, Roman, Greek"),
)  # fmt: skip
def test_chinese_numbers(row: Row) -> None:
    marked = keep_marks(spell_symbols(spell_numbers(plain_characters(row.text))))
    assert marked.text == row.expected, row.why
    assert marked.unknown == []


@pytest.mark.parametrize(
    ("text", "kept", "unknown"),
    [
        ("你好——世界……再见。。。", "你好,世界…再见…", []),
        ("“你好”（笑）《书》", "你好笑书", []),
        ("真的吗？！！一：二；三、四·五", "真的吗?一,二,三,四,五", []),
        ("中-美 男/女 好~", "中美男,女好…", []),
        ("用iPhone拍😀", "用拍", ["iPhone", "😀"]),
        ("人々の", "人人", ["の"]),
    ],
)
def test_chinese_marks(text: str, kept: str, unknown: list[str]) -> None:
    marked = keep_marks(plain_characters(text).replace(" ", ""))
    assert (marked.text, marked.unknown) == (kept, unknown)


def test_the_tables_of_chinese_are_whole() -> None:
    assert len(pinyin_table()) == 429
    for initial, final in pinyin_table().values():
        assert initial in symbols_for("v1")
        assert any(f"{final}{tone}" in symbols_for("v1") for tone in range(1, 6))
    for kind, word in {"neutral": "豆腐", "not_neutral": "男子", "not_erhua": "女儿"}.items():
        assert word in listed_words(kind)
    for entry in listed_words("readings"):
        word, _, reading = entry.partition(":")
        assert len(word) == len(reading.split(","))


# --- Chinese: readings and tones -------------------------------------------------------------


READINGS = {
    "the third tone": "老虎=l ao2 h u3; 纸老虎=zh ir3 l ao2 h u3; 展览馆=zh an2 l an2 g uan3; "
    "我很好=w o3 h en2 h ao3; 你好，世界！=n i2 h ao3 , sh ir4 j ie4 !",
    "不": "不是=b u2 sh ir4; 不好=b u4 h ao3; 看不懂=k an4 b u5 d ong3",
    "一": "一个=y i2 g e5; 一天=y i4 t ian1; 第一=d i4 y i1; 看一看=k an4 y i5 k an4",
    "the neutral tone": "妈妈=m a1 m a5; 桌子=zh uo1 z i05; 我们走了=w o3 m en5 z ou3 l e5; "
    "朋友的豆腐=p eng2 y ou5 d e5 d ou4 f u5",
    "words": "重庆的音乐很快乐=ch ong2 q ing4 d e5 y in1 y ve4 h en3 k uai4 l e4",
    "sentences": "他长大了=t a1 zh ang3 d a4 l e5; 头发很长=t ou2 f a5 h en3 ch ang2; "
    "还有书，还钱=h ai2 y ou3 sh u1 , h uan2 q ian2",
    "spelling": "女儿爱吃鱼=n v3 EE er2 AA ai4 ch ir1 y v2; 吃四次=ch ir1 s i04 c i04; "
    "绿色的月亮=l v4 s e4 d e5 y ve4 l iang5",
    "traditional characters": "他們說著話=t a1 m en5 sh uo1 zh e5 h ua4",
}


@needs("zh")
@pytest.mark.parametrize("rule", READINGS)
def test_chinese_phonemes(rule: str) -> None:
    for pair in READINGS[rule].split("; "):
        text, phonemes = pair.split("=")
        cleaned = clean_text(text, "zh", "v2")
        assert " ".join(cleaned.phonemes) == phonemes, text
        assert sum(cleaned.word2ph or ()) == len(cleaned.phonemes)
        assert len(cleaned.word2ph or ()) == len(cleaned.normalized)


@needs("zh")
def test_chinese_of_v1_reads_words_alone_and_leaves_er_apart() -> None:
    assert spoken("很长", "zh", "v2") == "h en3 ch ang2"
    assert spoken("很长", "zh", "v1") == "h en2 zh ang3"  # pypinyin's first reading, as upstream
    assert spoken("小院儿", "zh", "v2") == "x iao3 y van4 EE er4"
    assert spoken("小院儿", "zh", "v1") == "x iao3 y van4 EE er5"
    assert spoken("女儿", "zh", "v2") == spoken("女儿", "zh", "v1") == "n v3 EE er2"


@needs("zh")
def test_special_marks_and_what_chinese_cannot_read() -> None:
    assert spoken("停￥好，的", "zh") == "t ing2 SP2 h ao3 SP2 d e5"
    assert spoken("停^好", "zh") == "t ing2 SP3 h ao3"
    assert (spoken("嗯", "zh"), spoken("呣", "zh")) == ("EE en1", "m u3")
    cleaned = clean_text("我用iPhone拍😀，𰻝面", "zh")
    assert cleaned.normalized == "我用拍,𰻝面"
    assert cleaned.unknown == ("iPhone", "😀", "𰻝")
    assert cleaned.phonemes.count("UNK") == 1
    assert cleaned.word2ph == [2, 2, 2, 1, 1, 2]


# --- Japanese --------------------------------------------------------------------------------


@rows(
    Row("2024/3/15、10:30", "2024年3月15日,10時30分", "a date, a time"),
    Row("1,234円と¥5,000と$3.5", "1234円と5000円と3.5ドル", "money"),
    Row("気温は-3℃、50%オフ", "気温はマイナス3度,50パーセントオフ", "signs"),
    Row("10〜20人、3-5個", "10から20人,3から5個", "ranges"),
    Row("03-1234-5678", "ゼロサンのイチニーサンヨンのゴーロクナナハチ", "a telephone"),
    Row("１２個　ﾊﾝｶｸ！？", "12個 ハンカク!", "widths; the first mark stays"),
    Row("そうだね〜。。。", "そうだねー.", "a drawn vowel"),
)  # fmt: skip
def test_japanese_numbers(row: Row) -> None:
    assert japanese.normalize(row.text) == row.expected, row.why


ACCENTS = {
    "pitch": "雨が=a ] m e g a; 飴が=a [ m e g a; 箸が=h a ] sh i g a; 橋が=h a [ sh i ] g a",
    "sounds": "学校。=g a [ cl k o o .; 新聞、=sh i [ N b u N ,; コーヒー？=k o [ o h i ] i ?",
    "counters": "百本=hy a ] cl p o N; 三本=s a ] N b o N; 一匹=i [ cl p i k i",
}


@needs("ja")
@pytest.mark.parametrize("kind", ACCENTS)
def test_japanese_phonemes_and_accents(kind: str) -> None:
    for pair in ACCENTS[kind].split("; "):
        text, phonemes = pair.split("=")
        assert spoken(text, "ja", "v2Pro") == phonemes
        v1 = phonemes.replace("[", "UNK").replace("]", "UNK")
        assert spoken(text, "ja", "v1") == v1, "v1 has no accent marks"


@needs("ja")
def test_japanese_borders_and_brackets_are_unk() -> None:
    cleaned = clean_text("「はい」と言った。", "ja")
    assert cleaned.phonemes[0] == "UNK"  # the bracket, as upstream
    assert cleaned.unknown == ()
    assert "UNK" in clean_text("私は学生です", "ja").phonemes  # between accent phrases
    strange = clean_text("😀こんにちは안녕", "ja")
    assert strange.unknown == ("😀", "안녕")
    assert strange.word2ph is None


# --- Korean ----------------------------------------------------------------------------------


def jamo(hangul: str) -> str:
    """The symbols of a pronunciation that is written in Hangul."""
    syllables = [korean_sounds.split_syllable(c) for c in hangul]
    return "".join(
        "空" if s.other else "".join(korean._jamo(s.onset, s.vowel, s.coda)) for s in syllables
    )


# "Written=spoken": examples of the 표준 발음법, by article. Which words are stems of verbs, the
# tagger of the extra tells; here a "!" before them does.
STANDARD = {
    "5": "가져=가저 다쳐=다처 무늬=무니 희망=히망 띄어=띠어",
    "9": "닦다=닥따 키읔=키윽 웃다=욷따 있다=읻따 젖=젇 꽃=꼳 솥=솓 앞=압 덮다=덥따",
    "10": "넋과=넉꽈 !앉다=안따 여덟=여덜 !넓다=널따 외곬=외골 !핥다=할따 !밟다=밥따",
    "11": "닭=닥 흙과=흑꽈 맑다=막따 삶=삼 읊고=읍꼬 !맑게=말께 !묽고=물꼬",
    "12 aspiration": "놓고=노코 좋던=조턴 많고=만코 않던=안턴 닳지=달치 각하=가카 먹히다=머키다 "
    "밝히다=발키다 맏형=마텽 좁히다=조피다 넓히다=널피다 꽂히다=꼬치다 앉히다=안치다",
    "12": "닿소=다쏘 많소=만쏘 놓는=논는 않네=안네 뚫네=뚤레 낳은=나은 많아=마나 싫어도=시러도",
    "13": "깎아=까까 옷이=오시 있어=이써 꽂아=꼬자 꽃을=꼬츨 밭에=바테 앞으로=아프로",
    "14": "넋이=넉씨 앉아=안자 닭을=달글 젊어=절머 핥아=할타 읊어=을퍼 값을=갑쓸 없어=업써",
    "17": "굳이=구지 미닫이=미다지 밭이=바치 벼훑이=벼훌치 굳히다=구치다 닫히다=다치다",
    "18": "먹는=멍는 국물=궁물 깎는=깡는 긁는=긍는 닫는=단는 짓는=진는 꽃망울=꼰망울 없는=엄는",
    "19": "담력=담녁 침략=침냑 대통령=대통녕 막론=망논 백리=뱅니 협력=혐녁 십리=심니",
    "20": "난로=날로 신라=실라 칼날=칼랄 물난리=물랄리 닳는=달른 의견란=의견난 생산량=생산냥",
    "23": "국밥=국빱 깎다=깍따 삯돈=삭똔 닭장=닥짱 옷고름=옫꼬름 꽃다발=꼳따발 밭갈이=받까리",
    "26-29": "갈등=갈뜽 발전=발쩐 문고리=문꼬리 솜이불=솜니불 꽃잎=꼰닙 색연필=생년필",
}


@pytest.mark.parametrize("article", STANDARD)
def test_korean_follows_the_standard_pronunciation(
    article: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pair in STANDARD[article].split():
        written, said = pair.split("=")
        is_stem = written.startswith("!")
        monkeypatch.setattr(
            korean, "_mark_grammar", lambda text, s, stem=is_stem: setattr(s[0], "is_stem", stem)
        )
        assert "".join(korean.clean(written.strip("!"), "v2").phonemes).rstrip(".") == jamo(said)


@rows(
    Row("2024년 6월 15일, 10월", "이천이십사년 유월 십오일, 시월", "dates"),
    Row("3개, 20명, 2시 30분, 15시", "세개, 스무명, 두시 삼십분, 십오시", "counters"),
    Row("5~10개, 3개월, 1번째", "다섯에서 열 개, 삼개월, 첫번째", "a range; no counter"),
    Row("010-1234-5678", "공일공, 일이삼사, 오육칠팔", "a telephone"),
    Row("3.14, 1,234원, $100, 50%", "삼점일사, 천이백삼십사원, 백달러, 오십퍼센트", "numbers"),
    Row("10000, 100000000, AI 5kg", "만, 일억, 에이아이 오킬로그램", "만 but 일억; letters"),
)  # fmt: skip
def test_korean_numbers(row: Row) -> None:
    assert korean.normalize(row.text) == row.expected, row.why


@needs("ko")
def test_korean_grammar_and_spaces() -> None:
    for pair in (
        "신을 신고 갈 것이다=시늘 신꼬 갈 꺼시다",  # a stem in ㄴ; a form in -ㄹ before a noun
        "신도 감도=신도 감도",  # nouns stay lax
        "껴안다 닮고 할 수 있다=껴안따 담꼬 할 쑤 읻따",
        "옷 한 벌 밥 먹는다=오 탄 벌 밤 멍는다",  # over a space
    ):
        text, said = pair.split("=")
        assert "".join(clean_text(text, "ko").phonemes).rstrip(".") == jamo(said)


@needs("ko")
def test_korean_symbols_of_other_things() -> None:
    cleaned = clean_text("안녕, 😀 你好ㅋㅋ", "ko")
    assert " ".join(cleaned.phonemes) == "ㅇ ㅏ ㄴ ㄴ ㅣ ㅓ ㅇ , 空 停 空 停 停 ㅋ ㅋ ."
    assert cleaned.unknown == ("😀", "你", "好")
    assert cleaned.word2ph is None


# --- Cantonese -------------------------------------------------------------------------------
JYUTPING = (
    "hoeng1=Yh Yoeng1; gwong2=Ygw Yong2; ngo5=Yng Yo5; m4=Ym Ym4; ng5=Yng Yg5; aa3=Yaa Ya3; "
    "oi3=Yoi Yi3; jyut6=Yj Yyut6; ang1=Yng Yang1; deu6=Yd Yiu6"
)


def test_jyutping_symbols() -> None:
    for pair in JYUTPING.split("; "):
        syllable, symbols = pair.split("=")
        assert cantonese._symbols(syllable) == symbols.split()
        assert phonemes_to_ids(symbols.split(), "v2")


@needs("yue")
@rows(
    Row("香港，唔該！", "Yh Yoeng1 Yg Yong2 , Ym Ym4 Yg Yoi1 !"),
    Row("食飯，食饭", "Ys Yik6 Yf Yaan6 , Ys Yik6 Yf Yaan6", "traditional, simplified"),
    Row("銀行行路", "Yng Yan4 Yh Yong4 Yh Yaang4 Yl You6", "行 and 行"),
    Row("3個，2024年", "Ys Yaam1 Yg Yo3 , Yj Yi6 Yl Ying4 Yj Yi6 Ys Yei3 Yn Yin4", "numbers"),
    Row("卅㗎", "Ys Yaa1 Yaa Ya6 Yg Yaa3", "two syllables; a character of Cantonese"),
)
def test_cantonese_phonemes(row: Row) -> None:
    cleaned = clean_text(row.text, "yue")
    assert " ".join(cleaned.phonemes) == row.expected, row.why
    assert sum(cleaned.word2ph or ()) == len(cleaned.phonemes)
    assert len(cleaned.word2ph or ()) == len(cleaned.normalized)


# --- several languages -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "text", "parts"),
    [
        ("all_zh", "我用iPhone15拍，3000元。", "zh:我用|en:iPhone15|zh:拍，3000元。"),
        ("all_zh", "I have 3 cats，3只猫", "en:I have 3 cats，|zh:3只猫"),
        ("ko", "BTS는 2013년", "en:BTS|ko:는 2013년"),
        ("all_yue", "我哋去shopping啦", "yue:我哋去|en:shopping|yue:啦"),
        ("en", "你好 hello", "en:你好 hello"),
        ("auto", "MyGO?,你也喜欢まいご吗？", "en:MyGO?,|zh:你也喜欢|ja:まいご|zh:吗？"),
        ("auto", "君の瞳が星空みたい。今天很好。", "ja:君の瞳が星空みたい。|zh:今天很好。"),
        ("auto", "안녕, 你好, hello 3 times!", "ko:안녕, |zh:你好, |en:hello 3 times!"),
        ("auto", "動漫是《君の名は》", "zh:動漫是|ja:《君の名は》"),
        ("auto_yue", "我哋食飯，OK？", "yue:我哋食飯，|en:OK？"),
        ("auto_yue", "!?", "yue:!?"),
    ],
)
def test_texts_are_split_by_language(language: str, text: str, parts: str) -> None:
    assert "|".join(f"{p.language}:{p.text}" for p in split_languages(text, language)) == parts


@needs("zh", "ja", "ko", "yue")
def test_mixed_text_is_the_sum_of_its_parts() -> None:
    cleaned = clean_text("我用iPhone拍。こんにちは", "auto")
    parts = [clean_text("我用", "zh"), clean_text("iPhone", "en")]
    parts += [clean_text("拍。", "zh"), clean_text("こんにちは", "ja")]
    assert cleaned.phonemes == [phoneme for part in parts for phoneme in part.phonemes]
    assert cleaned.word2ph is None
    assert cleaned.normalized == "我用iPhone拍.こんにちは"
    assert clean_text("你好，世界", "auto") == clean_text("你好，世界", "zh")
    assert clean_mixed("안녕 OK", "ko").phonemes[-3:] == ["OW1", "K", "EY1"]
    assert clean_text("我哋OK😀", "all_yue").unknown == ("😀",)


# --- the door --------------------------------------------------------------------------------
def test_languages_of_a_version() -> None:
    assert {part.language for part in split_languages("你好 안녕", "auto", "v1")} == {"zh"}
    assert supported_languages("v1") == ("en", "zh", "ja", "all_zh", "all_ja", "auto")
    assert {"ko", "yue", "all_ko", "all_yue", "auto_yue"} < set(supported_languages("v2Pro"))
    for language in ("ko", "YUE", "all_yue", "auto_yue"):
        with pytest.raises(DataError, match=r"Version v1 has no symbols of (Korean|Cantonese)"):
            clean_text("안녕", language, "v1")


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "yue", "auto", "all_zh"])
@pytest.mark.parametrize("text", ["", " \n", "？！……", "😀", "《》", "ー。"])
def test_a_text_without_words_is_an_error(language: str, text: str) -> None:
    skip_without(language)
    with pytest.raises(DataError, match=r"empty|no word|no character"):
        clean_text(text, language)


def run(code: str) -> str:
    # Through standard input: an argument has to be in the locale's encoding.
    return subprocess.check_output([sys.executable, "-"], input=code, encoding="utf-8").strip()


def test_every_language_names_its_extra_where_it_is_missing() -> None:
    texts = {"zh": "你好", "ja": "はい", "ko": "네", "yue": "你好"}
    printed = run(
        f"import sys; sys.modules.update(dict.fromkeys({EVERY_PACKAGE}))\n"
        "from mlx_vits.text import clean_text\n"
        f"for language, text in {texts}.items():\n"
        "    try: clean_text(text, language)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    for language, line in zip(texts, printed.splitlines(), strict=True):
        assert line.startswith("UserError ")  # no DataError, which would be one clip's fault
        assert install_command(language) in line


def test_importing_and_reading_english_loads_no_package_of_an_extra() -> None:
    printed = run(
        "import sys, mlx_vits; from mlx_vits.text import clean_text; clean_text('hello', 'en')\n"
        f"print([name for name in {EVERY_PACKAGE} if name in sys.modules])"
    )
    assert printed == "[]"


def test_nothing_is_downloaded() -> None:
    texts = {"en": "hello", "zh": "你好2次", "ja": "何時ですか", "ko": "안녕", "yue": "你好"}
    here = [code for code in texts if all(map(importlib.util.find_spec, PACKAGES[code]))]
    printed = run(
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from mlx_vits.text import clean_text\n"
        f"for code in {here}: clean_text({texts}[code], code); print(code)\n"
    )
    assert printed.split() == here


PIECES = """
你好 一 不 儿 個 㗎 𠮷 〇 々 こんにちは 東京 っ ー ｱ 안녕 값 ㅋㅋ hi T60 A 1 23 4,567 8.9 007 2024 年 月 3:30 1/2 / -
~ … 。 ！ ? % $ ￥ ℃ km m² ½ ① Ⅳ + = & @ ^ _ ( 「 “ ' 🙂 é Ж π ไทย 12345678901234567890123 1.2.3 嗯 噷 覅 ٣
"""  # noqa: E501


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "yue", "auto"])
def test_no_text_crashes_a_front_end(language: str) -> None:
    skip_without(language)
    rng = random.Random(0)
    for _ in range(150):
        pieces = [*PIECES.split(), " ", "\n", "\u200b", "\x00"]
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 9)))
        for version in ("v1", "v2") if language in supported_languages("v1") else ("v2",):
            try:
                cleaned = clean_text(text, language, version)
            except DataError:
                continue
            assert set(cleaned.phonemes) <= set(symbols_for(version)), text
            if cleaned.word2ph is not None:
                assert sum(cleaned.word2ph) == len(cleaned.phonemes), text
                assert len(cleaned.word2ph) == len(cleaned.normalized), text
