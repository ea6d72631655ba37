"""Spell numbers, units and Latin letters of Korean text in Hangul.

Counters like 개, 명, 시 take native numerals (세 개), everything else Sino-Korean ones. Upstream's
`g2pk2` spells numbers before counters known to its tagger and reads all others digit by digit; here
dates, decimals, percentages, ranges, telephone numbers and money are read as people read them.
"""

from __future__ import annotations

import re

_DIGITS = "영일이삼사오육칠팔구"
_PLACES = ("", "십", "백", "천")
_GROUPS = ("", "만", "억", "조")
LONGEST_COUNT = 4 * len(_GROUPS)  # digits
_NATIVE_ONES = ("", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉")
_NATIVE_TENS = ("", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔")
# Counters that take native numerals, and what may follow them: 개를 and 개, not 개월 or 개조.
_COUNTERS = """
시간 사람 마리 켤레 그루 송이 자루 군데 모금 움큼 발짝 보루 가지 번째 달 개 명 시 살 권 대 벌 번 병
잔 장 채 척 첩 축 톨 통 쌍 줄 곳 판 끼 닢 뭇 모 술 쌈 짝 방울 바퀴 걸음 배 차례 그릇 접시 조각 묶음
상자 봉지
"""
_PARTICLES = """
을 를 이 가 은 는 의 에 로 으로 와 과 도 만 나 씩 째 쯤 정도 까지 부터 밖에 짜리 들 마다 당 간 동안
입니 이다 인 였 예요 이에 라 뿐 보다 처럼 반
"""
_COUNTER = rf"(?:{'|'.join(_COUNTERS.split())})(?=[^가-힣]|$|{'|'.join(_PARTICLES.split())})"
_UNITS = {
    **{"km": "킬로미터", "cm": "센티미터", "mm": "밀리미터", "m": "미터", "㎞": "킬로미터"},
    **{"kg": "킬로그램", "mg": "밀리그램", "g": "그램", "㎏": "킬로그램", "㎝": "센티미터"},
    **{"ml": "밀리리터", "mL": "밀리리터", "L": "리터", "㎡": "제곱미터", "%p": "퍼센트포인트"},
    **{"%": "퍼센트", "℃": "도", "°C": "도", "°": "도", "Hz": "헤르츠", "kW": "킬로와트"},
    **{"GB": "기가바이트", "MB": "메가바이트", "TB": "테라바이트", "kHz": "킬로헤르츠"},
}
_UNIT = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_MONEY = {"$": "달러", "₩": "원", "￦": "원", "¥": "엔", "€": "유로", "£": "파운드"}
_SCALE = "조|억|만|천|백"
_LETTER_NAMES = """
에이 비 시 디 이 에프 지 에이치 아이 제이 케이 엘 엠 엔 오 피 큐 아르 에스 티 유 브이 더블유 엑스
와이 제트
"""
_LETTERS = dict(zip("abcdefghijklmnopqrstuvwxyz", _LETTER_NAMES.split(), strict=True))
# Emergency and service numbers, read digit by digit unless a counter follows.
_SERVICE = "112|114|119|911"
_CROWD = 30
_COUNTED = "[원년월일점위층호회도분초만억천백번등세조]"
_NUMBER = r"\d+(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?"


def cardinal(text: str) -> str:
    """Spell a Sino-Korean count, "12000" as 만이천; by digits if longer than `LONGEST_COUNT`."""
    plain = text.lstrip("0") or "0"
    if len(plain) > LONGEST_COUNT:
        return digits(text)
    if plain == "0":
        return _DIGITS[0]
    groups = [plain[max(0, end - 4) : end] for end in range(len(plain), 0, -4)]
    spoken = ""
    for i in reversed(range(len(groups))):
        words = _below_ten_thousand(groups[i])
        if words:
            # 10000 is 만, 100000000 is 일억.
            spoken += ("" if (words, i) == ("일", 1) and not spoken else words) + _GROUPS[i]
    return spoken


def _below_ten_thousand(group: str) -> str:
    spoken = ""
    for place, digit in enumerate(reversed(group)):
        if digit != "0":
            name = "" if digit == "1" and place else _DIGITS[int(digit)]
            spoken = name + _PLACES[place] + spoken
    return spoken


def digits(text: str, zero: str = "영") -> str:
    """Spell the digits of a string one by one; other characters are dropped."""
    return "".join(zero if c == "0" else _DIGITS[int(c)] for c in text if c in "0123456789")


def native(text: str) -> str:
    """Spell a native count: 3 is 세, 20 is 스무; hundreds and above are Sino-Korean."""
    value = int(text)
    if value == 0 or len(text.lstrip("0")) > LONGEST_COUNT:
        return cardinal(text)
    hundreds, rest = divmod(value, 100)
    tens, ones = divmod(rest, 10)
    small = "스무" if rest == 20 else _NATIVE_TENS[tens] + _NATIVE_ONES[ones]
    return (cardinal(str(hundreds * 100)) if hundreds else "") + small


def number(text: str) -> str:
    """Spell a number as written: thousands separators are dropped, a point is 점."""
    whole, point, decimals = text.replace(",", "").partition(".")
    spoken = cardinal(whole or "0")
    return f"{spoken}점{digits(decimals)}" if point and decimals else spoken


def spell_numbers(text: str) -> str:
    """Replace every number and Latin letter in a text by Hangul."""
    text = re.sub(r"\d{20,}", lambda m: digits(m[0]), text)
    text = re.sub(r"(?<![\d-])(0\d{1,2}-\d{3,4}-\d{4}|1\d{3}-\d{4})(?![\d-])", _telephone, text)
    # Events named by their date: 6·25, 3·1절.
    text = re.sub(r"(?<![\d.,])(\d)[·ㆍ](\d\d?)(?![\d.·ㆍ])", lambda m: digits(m[1] + m[2]), text)
    text = re.sub(
        r"(?<!\d)(\d{4})([-./])(\d{1,2})\2(\d{1,2})(?!\d)",
        lambda m: f"{m[1]}년 {int(m[3])}월 {int(m[4])}일",
        text,
    )
    text = re.sub(
        r"(?<![\d:])([01]?\d|2[0-4]):([0-5]\d)(?![\d:])",
        lambda m: f"{int(m[1])}시" + (f" {int(m[2])}분" if int(m[2]) else ""),
        text,
    )
    text = re.sub(r"(?<!\d)(6|10)월", lambda m: "유월" if m[1] == "6" else "시월", text)
    text = re.sub(rf"([$₩￦¥€£]) ?({_NUMBER})({_SCALE})?", _money, text)
    text = re.sub(
        r"(?<!\d)(\d+)/(\d+)(?![\d/])", lambda m: f"{cardinal(m[2])}분의 {cardinal(m[1])}", text
    )
    text = re.sub(rf"(?<![\d.,])(\d\d?)[~∼〜-](\d\d?) ?(?={_COUNTER})", _count_range, text)
    text = re.sub(r"(?<=\d)([^\s\d]{0,3})[~∼〜-](?=\d)", r"\1에서 ", text)
    text = re.sub(r"(?<![\dA-Za-z가-힣])[-−](?=\d)", "마이너스 ", text)
    text = re.sub(
        rf"({_NUMBER}) ?({_UNIT})(?![A-Za-z])", lambda m: number(m[1]) + _UNITS[m[2]], text
    )
    text = re.sub(r"(?<![\d.,])1 ?번째", "첫번째", text)
    text = re.sub(rf"(?<![\d.,])(\d+) ?(?={_COUNTER})", _count, text)
    text = re.sub(
        rf"(?<![\d.,:/~-])(?:{_SERVICE})(?![\d:/~-]|[.,]\d| ?{_COUNTED})",
        lambda m: digits(m[0], "공"),
        text,
    )
    text = re.sub(r"(?<![\d.,])0\d+(?![\d.])", lambda m: digits(m[0], "공"), text)
    text = re.sub(_NUMBER, lambda m: number(m[0]), text)
    for sign, word in (("+", " 더하기 "), ("=", "는 "), ("×", " 곱하기 "), ("&", " 앤드 ")):
        text = text.replace(sign, word)
    return re.sub("[A-Za-z]", lambda m: _LETTERS[m[0].lower()], text)


def _telephone(match: re.Match[str]) -> str:
    return ", ".join(digits(part, "공") for part in match[0].split("-"))


def _money(match: re.Match[str]) -> str:
    return number(match[2]) + (match[3] or "") + _MONEY[match[1]]


def _count_range(match: re.Match[str]) -> str:
    return f"{native(match[1])}에서 {native(match[2])} "


def _count(match: re.Match[str]) -> str:
    after = match.string[match.end() : match.end() + 2]
    # Hours above 12, people from 30 and other counts from a hundred up are Sino-Korean.
    is_hour = after[0] == "시" and after != "시간"
    is_crowd = after[0] == "명" and int(match[1]) >= _CROWD
    sino = len(match[1]) > 2 or is_crowd or (is_hour and int(match[1]) > 12)
    space = " " if match[0].endswith(" ") else ""
    return (cardinal(match[1]) if sino else native(match[1])) + space
