"""Tone sandhi of Mandarin: 不, 一, neutral and third tones, and 儿.

Rules and word lists are those of upstream's `text/tone_sandhi.py` (from PaddleSpeech), errors
included: GPT-SoVITS will apply them when the finished voice speaks, so training has to as well. One
difference: words are merged with their readings in context, where upstream looks up each word
alone.
"""

from __future__ import annotations

from collections.abc import Callable

from mlx_vits.text.chinese_words import Word, listed_words, split_word

NEUTRAL = 5
_PARTICLES = frozenset("吧呢哈啊呐噻嘛吖嗨呐哦哒额滴哩哟喽啰耶喔诶的地得")
_ASPECTS = frozenset("了着过")
_ASPECT_TAGS = frozenset(["ul", "uz", "ug"])
_BEFORE_COUNTED = frozenset("几有两半多各整每做是")
_DIRECTIONS = frozenset("上下进出回过起开")


def change_tones(words: list[Word], merge_er: bool) -> list[Word]:
    """Merge the words of a clause where sandhi requires it, and apply tone sandhi.

    Args:
        words: without marks.
        merge_er: whether a final 儿 takes the preceding tone, as from version v2 on.
    """
    for join in (_join_bu, _join_yi, _join_repeated, _join_third, _join_third_edges, _join_er):
        words = join(words)
    for word in words:
        _change_bu(word)
        _change_yi(word)
        _make_neutral(word)
        _change_third(word)
        if merge_er:
            _merge_er(word)
    return words


# --- merging of words ----------------------------------------------------------------------


def _join_bu(words: list[Word]) -> list[Word]:
    joined: list[Word] = []
    for word in words:
        if joined and joined[-1].text == "不":
            word = joined.pop().join(word, word.tag)
        joined.append(word)
    return joined


def _join_yi(words: list[Word]) -> list[Word]:
    """Merge 看 一 看 into one word, and 一 with the word after it."""
    joined: list[Word] = []
    for i, word in enumerate(words):
        before = joined[-1] if joined else None
        if before and before.text[-1] == "一" and before.tag == "v一":
            joined[-1] = before.join(word, "v")
        elif (
            before
            and word.text == "一"
            and i + 1 < len(words)
            and before.text == words[i + 1].text
            and before.tag == words[i + 1].tag == "v"
        ):
            joined[-1] = before.join(word, "v一")
        elif before and before.text == "一":
            joined[-1] = before.join(word)
        else:
            joined.append(word)
    return joined


def _join_repeated(words: list[Word]) -> list[Word]:
    joined: list[Word] = []
    for word in words:
        if joined and joined[-1].text == word.text:
            joined[-1] = joined[-1].join(word)
        else:
            joined.append(word)
    return joined


def _join_third(words: list[Word]) -> list[Word]:
    """Merge pairs of short words that have only third tones, each word once."""
    return _join_if(words, lambda left, right: _all_third(left.tones + right.tones))


def _join_third_edges(words: list[Word]) -> list[Word]:
    """Merge pairs of short words with third tones where they meet, each word once."""
    return _join_if(words, lambda left, right: left.tones[-1] == right.tones[0] == 3)


def _join_if(words: list[Word], meets: Callable[[Word, Word], bool]) -> list[Word]:
    joined: list[Word] = []
    previous_joined = False
    for i, word in enumerate(words):
        left = words[i - 1] if i else None
        join = (
            left is not None
            and not previous_joined
            and meets(left, word)
            and not _is_doubled(left.text)
            and len(left.text) + len(word.text) <= 3
        )
        if join:
            joined[-1] = joined[-1].join(word)
        else:
            joined.append(word)
        previous_joined = join
    return joined


def _join_er(words: list[Word]) -> list[Word]:
    joined: list[Word] = []
    for word in words:
        if joined and word.text == "儿":
            joined[-1] = joined[-1].join(word)
        else:
            joined.append(word)
    return joined


def _is_doubled(text: str) -> bool:
    return len(text) == 2 and text[0] == text[1]


def _all_third(tones: list[int]) -> bool:
    return all(tone == 3 for tone in tones)


# --- changes of tone -----------------------------------------------------------------------


def _change_bu(word: Word) -> None:
    if len(word.text) == 3 and word.text[1] == "不":  # 看不懂
        word.tones[1] = NEUTRAL
        return
    for i, character in enumerate(word.text[:-1]):
        if character == "不" and word.tones[i + 1] == 4:
            word.tones[i] = 2


def _change_yi(word: Word) -> None:
    text, tones = word.text, word.tones
    if "一" not in text or all(c.isnumeric() for c in text):
        return
    if len(text) == 3 and text[1] == "一" and text[0] == text[2]:  # 看一看
        tones[1] = NEUTRAL
        return
    if text.startswith("第一"):
        tones[1] = 1
        return
    for i, character in enumerate(text[:-1]):
        if character == "一":
            tones[i] = 2 if tones[i + 1] == 4 else 4


def _make_neutral(word: Word) -> None:
    text, tones = word.text, word.tones
    if word.tag[0] in "nva" and text not in listed_words("not_neutral"):
        for i in range(1, len(text)):
            if text[i] == text[i - 1]:  # 奶奶, 试试
                tones[i] = NEUTRAL
    counted = text.find("个")
    if _ends_neutral(word):
        tones[-1] = NEUTRAL
    elif text == "个" or (
        counted > 0 and (text[counted - 1].isnumeric() or text[counted - 1] in _BEFORE_COUNTED)
    ):
        tones[counted] = NEUTRAL
    elif _is_listed_neutral(text):
        tones[-1] = NEUTRAL
    first, second = split_word(text)
    if _is_listed_neutral(first):
        tones[len(first) - 1] = NEUTRAL
    if _is_listed_neutral(second):
        tones[-1] = NEUTRAL


def _ends_neutral(word: Word) -> bool:
    text, last = word.text, word.text[-1]
    if last in _PARTICLES:
        return True
    if len(text) == 1:
        return last in _ASPECTS and word.tag in _ASPECT_TAGS
    if last in "们子" and word.tag in ("r", "n"):
        return text not in listed_words("not_neutral")
    if last in "上下里" and word.tag in ("s", "l", "f"):
        return True
    return last in "来去" and text[-2] in _DIRECTIONS


def _is_listed_neutral(text: str) -> bool:
    return text in listed_words("neutral") or text[-2:] in listed_words("neutral")


def _change_third(word: Word) -> None:
    """Make the first of two third tones a second one; longer words change within their parts."""
    tones = word.tones
    if len(tones) == 2 and _all_third(tones):
        tones[0] = 2
    elif len(tones) == 3:
        _change_third_of_three(word)
    elif len(tones) == 4:
        for start in (0, 2):
            if _all_third(tones[start : start + 2]):
                tones[start] = 2


def _change_third_of_three(word: Word) -> None:
    tones = word.tones
    cut = len(split_word(word.text)[0])
    if _all_third(tones):
        if cut == 2:  # 蒙古 包
            tones[0] = tones[1] = 2
        elif cut == 1:  # 纸 老虎
            tones[1] = 2
        return
    if cut == 2 and _all_third(tones[:2]):  # 所有 人
        tones[0] = 2
    elif cut == 1 and _all_third(tones[1:]):
        tones[1] = 2
    elif 0 < cut < 3 and tones[cut - 1] == tones[cut] == 3 and not _all_third(tones[cut:]):
        tones[cut - 1] = 2  # 好 喜欢


def _merge_er(word: Word) -> None:
    """Give a 儿 that is not a syllable of its own the preceding tone: 花儿 but not 女儿."""
    text, tones = word.text, word.tones
    if text[-1] != "儿" or word.syllables[-1] != "er":
        return
    if tones[-1] == 1:
        tones[-1] = 2
    apart = text in listed_words("not_erhua") or word.tag in ("a", "j", "nr")
    if apart and text not in listed_words("erhua"):
        return
    if tones[-1] in (2, NEUTRAL) and text[-2:] not in listed_words("not_erhua") and len(text) > 1:
        tones[-1] = tones[-2]
