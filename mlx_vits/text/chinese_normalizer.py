"""Spell numbers in Chinese text: dates, times, money, units, telephone numbers, ranges.

The rules are those of upstream's `text/zh_normalization` (from PaddleSpeech), except where its
result is not what a person would say, and so not what a recording says:

- Thousands separators are removed (upstream reads "1,234" as two numbers); spaces between numbers
  are kept.
- A number of three or more digits without a measure word is a count (300 is 三百), except years,
  telephone and room numbers, long numbers that are not round, and leading zeros, which are read
  digit by digit, as upstream reads all of them.
- 2 is 二 before 月, 日, 号, 楼 (upstream: 两月), 两 before 点, 千, 万. Two digits before 年 are a
  year only before a month or the like (10年后 is ten years later).
- Money, ratios, "km/h", Roman and circled numerals, and dates with one-digit months are supported;
  Latin letters are units only after a number; "/" is 每 (per) only between units.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from mlx_vits.text.chinese_numbers import cardinal, digits, number, quantity

_NUMBER = r"\d+(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?"
_UNITS = {
    **{"km/h": "千米每小时", "m/s": "米每秒", "km2": "平方千米", "km²": "平方千米", "km": "千米"},
    **{"cm2": "平方厘米", "cm²": "平方厘米", "cm3": "立方厘米", "cm³": "立方厘米", "cm": "厘米"},
    **{"mm": "毫米", "m2": "平方米", "m²": "平方米", "m3": "立方米", "m³": "立方米", "m": "米"},
    **{"㎡": "平方米", "㎞": "千米", "㎝": "厘米", "㎏": "千克", "kg": "千克", "mg": "毫克"},
    **{"g": "克", "ml": "毫升", "mL": "毫升", "L": "升", "kWh": "千瓦时", "kW": "千瓦", "W": "瓦"},
    **{"V": "伏", "db": "分贝", "dB": "分贝", "Hz": "赫兹", "kHz": "千赫兹", "MHz": "兆赫"},
    **{"GHz": "吉赫", "ms": "毫秒", "min": "分钟", "h": "小时", "s": "秒"},
}
_UNIT = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_MONEY = {
    **{"$": "美元", "¥": "元", "€": "欧元", "£": "英镑"},
    **{"US$": "美元", "HK$": "港元", "NT$": "新台币", "A$": "澳元", "C$": "加元"},
}
# Cantonese is not simplified, so the words around a number may be traditional.
_TRADITIONAL = str.maketrans(
    "万亿个条张册辆间栋层颗块盘壶锅双对组队种类样门节课项声盏顶处笔桩周岁钟时头点两吨亩顷户国县届拨帧辈礼"
    "党页阵篮笼针贴丝只摄镑欧",
    "萬億個條張冊輛間棟層顆塊盤壺鍋雙對組隊種類樣門節課項聲盞頂處筆樁週歲鐘時頭點兩噸畝頃戶國縣屆撥幀輩禮"
    "黨頁陣籃籠針貼絲隻攝鎊歐",
)


def _either_script(words: str) -> str:
    """Extend a pattern's simplified alternatives by those traditional ones that differ."""
    simplified = words.split("|")
    both = dict.fromkeys([*simplified, *(word.translate(_TRADITIONAL) for word in simplified)])
    return "|".join(both)


_SCALE = _either_script("万亿|千万|百万|十万|万|亿|千|百")
# Measure words before which 2 is 两; it stays 二 before 月 日 号 楼 级 班 路 世纪.
_MEASURE_WORDS = """
个 位 名 只 支 枝 条 张 把 件 本 册 辆 台 架 艘 家 间 所 座 栋 幢 层 棵 株 朵 颗 粒 块 片 滴 杯
瓶 碗 盘 盒 袋 包 箱 桶 罐 壶 锅 盆 双 对 副 套 组 群 批 排 队 股 种 类 样 门 节 课 篇 章 首 幅 部
集 场 次 回 遍 趟 顿 番 下 步 口 句 声 段 份 封 项 道 面 扇 盏 根 串 束 卷 匹 头 尾 峰 枚 顶 处 笔
桩 起 周 年 天 夜 岁 秒 分钟 分 小时 钟头 点 刻 里 米 尺 寸 丈 公里 厘米 毫米 千米 平方 立方 克 千克
公斤 斤 两 吨 升 毫升 亩 公顷 元 块 角 毛 美元 欧元 英镑 日元 港元 人 户 倍 国 省 市 县 代 届 期 拨
瓣 尊 帧 辈子 旬 季 晚 星期 礼拜 成 折 大 者 派 党 页 例 列 床 堂 阵 堆 捆 扎 碟 叠 篮 笼 针 贴 丝
堵 蚊 嚿 樽 餐 煲
"""
_MEASURES = {*_either_script("|".join(_MEASURE_WORDS.split())).split("|"), *_SCALE.split("|")}
_MEASURE = "|".join(sorted(_MEASURES, key=len, reverse=True))
_COUNTED = "".join(sorted({word[-1] for word in _MEASURES}))
_PER = _either_script(
    "平方|立方|天|日|月|年|小时|分钟|分|秒|人|次|公里|千米|千克|公斤|米|升|吨|周|斤|个"
)
_TIME = r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?"
_SERVICE_NUMBERS = frozenset(["110", "112", "114", "119", "120", "122", "911", "315"])
_CELLULAR = r"(?<![\d.])(?:\+?86[ -]?)?1[3-9]\d([ -]?)\d{4}\1\d{4}(?!\d)"
_LANDLINE = r"(?<![\d.-])(?:0\d{2,3}-\d{7,8}|[48]00-\d{3}-?\d{4}|[48]00\d{7})(?![\d-])"


def spell_numbers(text: str, one: str = "幺") -> str:
    """Replace every number in a text by Chinese characters.

    Args:
        text: from `chinese_marks.plain_characters`.
        one: reading of the digit 1 in telephone numbers and codes.
    """
    text = "".join(_plain_numeral(c) for c in text)
    text = re.sub(r"\d{20,}", lambda m: digits(m[0], one), text)
    # Spaces matter only between numbers and between Latin words.
    text = re.sub(r"(?<![0-9A-Za-z.%]) +| +(?![0-9A-Za-z.+-])", "", text)
    for pattern in (_CELLULAR, _LANDLINE):
        text = re.sub(pattern, lambda m: _telephone(m[0], one), text)
    for rule in (_spell_dates, _spell_times, _spell_ranges, _spell_amounts, _spell_arithmetic):
        text = rule(text)
    text = re.sub(r"第(\d+)", lambda m: "第" + cardinal(m[1]), text)
    text = re.sub(rf"({_NUMBER})(?=[多余几]?(?:{_MEASURE}))", lambda m: quantity(m[1]), text)
    text = re.sub(rf"(?<![\d.])({_NUMBER})(?=\+(?:{_MEASURE}))\+", _and_more, text)
    text = re.sub(r"\d+(?:\.\d+){2,}", lambda m: "点".join(map(digits, m[0].split("."))), text)
    text = re.sub(rf"(?<=[{_COUNTED}])/(?={_PER})", "每", text)
    return re.sub(_NUMBER, _bare_number(one), text)


def _plain_numeral(character: str) -> str:
    """Convert circled and Roman numerals to Chinese and "½" to " 1/2"; keep all others."""
    if character in "¹²³零" or unicodedata.category(character) not in ("No", "Nl"):
        return character
    value = unicodedata.numeric(character)
    if value != int(value):
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return character if "⁰" <= character <= "⁹" else cardinal(str(int(value)))


def _telephone(written: str, one: str) -> str:
    return "，".join(digits(part, one) for part in re.split(r"[ -]", written.lstrip("+")))


def _spell_dates(text: str) -> str:
    def iso(match: re.Match[str]) -> str:
        year, month, day = match[1], int(match[3]), int(match[4])
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return match[0]
        return f"{digits(year)}年{cardinal(str(month))}月{cardinal(str(day))}日"

    def year(match: re.Match[str]) -> str:
        value = int(match[0])
        counted = value % 1000 == 0 and value != 2000
        return match[0] if counted or not 1000 < value < 3000 else digits(match[0])

    text = re.sub(r"(?<!\d)(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?!\d)", iso, text)
    text = re.sub(
        r"(?<![\d.])(\d{4})[-~至到](\d{4})(?=年)", lambda m: f"{digits(m[1])}到{digits(m[2])}", text
    )
    text = re.sub(r"(?<![\d.])\d{4}(?=年)", year, text)
    short_year = r"(?<![\d.])\d\d(?=年(?:[01]?\d月|[初底末春夏秋冬级]|毕业|出生))"
    return re.sub(short_year, lambda m: digits(m[0]), text)


def _spell_times(text: str) -> str:
    def time(match: re.Match[str]) -> str:
        hour, minute, second = match[1], match[2], match[3]
        spoken = quantity(hour.lstrip("0") or "0") + "点"
        if minute == "30" and not second:
            return spoken + "半"
        if int(minute) or second:
            spoken += _two_digits(minute) + "分"
        return spoken + (_two_digits(second) + "秒" if second else "")

    text = re.sub(rf"(?<![\d:])({_TIME})[-~]({_TIME})(?![\d:])", r"\1至\2", text)
    text = re.sub(r"(?<![\d:.])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?![\d:])", time, text)
    return re.sub(r"(?<=\d):(?=\d)", "比", text)


def _two_digits(text: str) -> str:
    return ("零" if text[0] == "0" and text != "00" else "") + cardinal(text)


def _spell_ranges(text: str) -> str:
    tail = rf"(?:%|‰|°C|℃|°|度|{_UNIT})?"
    between = rf"(?<![\d+×÷=.-])(-?(?:{_NUMBER}){tail}(?:{_SCALE})?)[-~](-?(?:{_NUMBER}))(?![\d=-])"
    return re.sub(between, r"\1到\2", text)


def _spell_amounts(text: str) -> str:
    """Spell temperatures, percentages, money, and numbers with Latin units."""

    def money(match: re.Match[str]) -> str:
        return quantity(match[2]) + (match[3] or "") + _MONEY[match[1]]

    def money_after(match: re.Match[str]) -> str:
        return quantity(match[1]) + _MONEY[match[2]]

    def percent(match: re.Match[str]) -> str:
        sign, value, kind = match[1], match[2], match[3]
        return f"{'负' if sign else ''}{'百' if kind == '%' else '千'}分之{number(value)}"

    text = re.sub(rf"(?<![\d])-(?=(?:{_NUMBER})(?:°C|℃|°|度|摄氏度|攝氏度))", "零下", text)
    text = re.sub(
        rf"({_NUMBER})(?:(°C|℃|°F|℉|°))",
        lambda m: number(m[1]) + ("华氏度" if m[2] in ("°F", "℉") else "度"),
        text,
    )
    text = re.sub(rf"(?<!\d)(-?)({_NUMBER})(%|‰)", percent, text)
    text = re.sub(
        rf"((?:US|HK|NT|A|C)?\$|[¥€£]) ?({_NUMBER})({_SCALE})?(?:元|美元|欧元|歐元|英镑|英鎊)?",
        money,
        text,
    )
    text = re.sub(rf"({_NUMBER}) ?([$¥€£])(?!\d)", money_after, text)
    return re.sub(
        rf"({_NUMBER}) ?({_UNIT})(?![A-Za-z0-9])",
        lambda m: quantity(m[1]) + _UNITS[m[2]],
        text,
    )


def _spell_arithmetic(text: str) -> str:
    """Spell fractions, powers, sums, and signs before numbers."""
    text = re.sub(
        r"(?<![\d/])(?:(\d+) )?(\d+)/(\d+)(?![\d/])",
        lambda m: f"{cardinal(m[1]) + '又' if m[1] else ''}{cardinal(m[3])}分之{cardinal(m[2])}",
        text,
    )
    text = re.sub(
        "[⁰¹²³⁴-⁹]+", lambda m: f"的{cardinal(unicodedata.normalize('NFKC', m[0]))}次方", text
    )
    text = re.sub(r"(?<=[\dA-Za-z)方]) ?- ?(?=(?:[\d.]+|[A-Za-z]) ?[=+])", "减", text)
    return re.sub(r"(?<![\dA-Za-z])-(?=\d)", "负", text)


def _and_more(match: re.Match[str]) -> str:
    return quantity(match[1]) + "多"


def _bare_number(one: str) -> Callable[[re.Match[str]], str]:
    """Return a reader of numbers without a unit: as a count, a year, or a code."""

    def spell(match: re.Match[str]) -> str:
        written = match[0]
        if "." in written or "," in written:
            return number(written)
        if len(written) > 1 and written[0] == "0":
            return digits(written, one)
        if written in _SERVICE_NUMBERS:
            return digits(written, one)
        # Only the neighbouring characters: copying all the text per number would be quadratic.
        before = match.string[max(0, match.start() - 1) : match.start()]
        after = match.string[match.end() : match.end() + 1]
        if len(written) == 3 and (re.match("[路室房]", after) or re.match("[A-Za-z]", before)):
            return digits(written, one)
        if len(written) < 4 or written.endswith("00"):
            return quantity(written) if len(written) > 3 else number(written)
        if len(written) == 4:
            return digits(written) if 1000 < int(written) < 3000 else number(written)
        return digits(written, one)

    return spell
