"""Numbers in Chinese characters: counts, decimals, and single digits."""

from __future__ import annotations

_DIGITS = "零一二三四五六七八九"
_PLACES = ("", "十", "百", "千")
_GROUPS = ("", "万", "亿", "万亿")
LONGEST_COUNT = 4 * len(_GROUPS)  # digits


def digits(text: str, one: str = "一") -> str:
    """Spell the digits of a string one by one; other characters are dropped.

    Args:
        text: for example a telephone number.
        one: reading of the digit 1; "幺" for telephone numbers in Mandarin.
    """
    return "".join(one if c == "1" else _DIGITS[int(c)] for c in text if c in "0123456789")


def cardinal(text: str) -> str:
    """Spell a count, "12" as 十二; digit by digit if longer than `LONGEST_COUNT`.

    Args:
        text: digits, with or without leading zeros.
    """
    plain = text.lstrip("0") or "0"
    if len(plain) > LONGEST_COUNT:
        return digits(text)
    if plain == "0":
        return _DIGITS[0]
    groups = [plain[max(0, end - 4) : end] for end in range(len(plain), 0, -4)]
    spoken = ""
    for i in reversed(range(len(groups))):
        words = _below_ten_thousand(groups[i])
        if not words:
            continue
        gap = spoken and (groups[i][0] == "0" or not int(groups[i + 1]))
        spoken += ("零" if gap else "") + words + _GROUPS[i]
    # 万亿 is 万 times 亿: both groups share one 亿, as in 一万二千亿.
    if len(groups) == 4 and int(groups[2]):
        spoken = spoken.replace("万亿", "万", 1)
    return spoken[1:] if spoken.startswith("一十") else spoken


def _below_ten_thousand(group: str) -> str:
    """Spell a group of up to four digits, with its inner zeros."""
    spoken, zero = "", False
    for place, digit in enumerate(reversed(group)):
        if digit == "0":
            zero = bool(spoken)
            continue
        spoken = _DIGITS[int(digit)] + _PLACES[place] + ("零" if zero else "") + spoken
        zero = False
    return spoken


def number(text: str) -> str:
    """Spell a number as written: thousands separators are dropped, a point is 点."""
    whole, point, decimals = text.replace(",", "").partition(".")
    spoken = cardinal(whole or "0")
    return f"{spoken}点{digits(decimals)}" if point and decimals else spoken


def quantity(text: str) -> str:
    """Spell a number before a measure word: 2 is 两, also as the leading 2 of 千, 万, 亿.

    Source: 现代汉语八百词, 两 and 二: 两 before measure words and before 千, 万, 亿; 二 elsewhere.
    """
    spoken = number(text)
    if spoken == "二":
        return "两"
    return "两" + spoken[1:] if spoken[:2] in ("二千", "二万", "二亿") else spoken
