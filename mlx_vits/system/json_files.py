"""JSON files, read within bounds and checked against declared types.

A file may be cut short, hand-edited, malicious or from another version: whatever it holds, its
reader gets values of the declared types, or one sentence that names the file, the key and the cure.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from mlx_vits.errors import UserError
from mlx_vits.system.files import LARGEST_BYTES, read_bytes

_DEEPEST = 32
_MOST_DIGITS = 19  # so that a whole number fits a float, and nearly fits 64 bits
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

T = TypeVar("T")


def read_json(path: Path, kind: type[T], *, error: type[UserError], cure: str) -> T:
    """Read a file that holds one JSON value.

    Args:
        path: the file, UTF-8.
        kind: what it holds, see `check_json`.
        error: the kind of `UserError` to raise.
        cure: what helps, the end of its sentence.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds something else.
    """
    try:
        text = read_bytes(path)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be read ({reason}); {cure}") from fault
    return parse_json(text, kind, f"{path}:", error=error, cure=cure)


def parse_json(
    text: str | bytes, kind: type[T], where: str, *, error: type[UserError], cure: str
) -> T:
    """Like `read_json` for a text; `where` begins the sentence, as in "FILE: its metadata"."""
    try:
        value = _parse(text)
    except ValueError as fault:
        raise error(f"{where} is damaged ({fault}); {cure}") from fault
    return build_record(kind, value, where, error=error, cure=cure)


def build_record(kind: type[T], value: Any, where: str, *, error: type[UserError], cure: str) -> T:
    """Like `parse_json` for a value that is already parsed."""
    try:
        return check_json(kind, value)
    except ValueError as fault:
        raise error(f"{where} is damaged ({fault}); {cure}") from fault


def read_json_lines(
    path: Path, kind: type[T], *, error: type[UserError], cure: str, may_be_cut: bool = False
) -> list[T]:
    """Read a file with one JSON value per line.

    Args:
        may_be_cut: whether to skip a last line without its end, instead of refusing it.

    Raises:
        UserError: as for `read_json`; the line is named.
    """
    records: list[T] = []
    try:
        for number, line in enumerate(_lines(path), 1):
            if may_be_cut and not line.endswith(b"\n"):
                break
            where = f"{path}: line {number}"
            records.append(parse_json(line, kind, where, error=error, cure=cure))
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be read ({reason}); {cure}") from fault
    return records


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise ValueError("there is no such file")
    with path.open("rb") as file:
        while line := file.readline(LARGEST_BYTES + 1):
            if len(line) > LARGEST_BYTES:
                raise ValueError(f"it has a line of more than {LARGEST_BYTES >> 20} MB")
            yield line


def _parse(text: str | bytes) -> Any:
    """Parse JSON whose values can be computed with, printed and written again.

    Raises:
        ValueError: it is not JSON, too deep, has a duplicate key, or holds a number that is too
            large or not finite, or text that is not valid UTF-8.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_table, parse_int=_whole)
    except UnicodeDecodeError as fault:
        raise ValueError("is not UTF-8 text") from fault
    except json.JSONDecodeError as fault:
        raise ValueError(f"is not valid JSON ({fault})") from fault
    except RecursionError as fault:
        raise ValueError("is nested too deeply") from fault
    level = [value]
    for _ in range(_DEEPEST):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += [*item, *item.values()]
            elif isinstance(item, list):
                deeper += item
            else:
                _check_scalar(item)
        if not deeper:
            return value
        level = deeper
    raise ValueError("is nested too deeply")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in table if keys.count(key) > 1)
        raise ValueError(f"states {_shown(twice)} twice")
    return table


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("holds a number that is too large")
    return int(digits)


def _check_scalar(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value or not (value.isascii() or _is_utf8(value)):
            raise ValueError(f"holds {_shown(value)}, which is no text")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"holds {value}, which is no number")


def _is_utf8(text: str) -> bool:
    """Tell whether a text can be written as UTF-8; a file name in another encoding cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_json(kind: type[T], value: Any, key: str = "") -> T:
    """Check a value from JSON against a type, and convert it.

    Args:
        kind: a dataclass, which allows no keys but its fields; a `TypedDict`, which ignores
            further keys; or `dict[str, X]`, `list[X]`, `tuple[X, ...]`, `X | None`,
            `Literal`, `bool`, `int`, `float`, `str`, `Any` of these.
        value: from JSON.
        key: the value's path within its file, for messages.

    Raises:
        ValueError: it does not fit, or the dataclass itself rejects it.
    """
    checked: Any = _check(kind, value, key)
    return checked


def _check(kind: Any, value: Any, key: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):  # `X | None`
        (some,) = (kind for kind in inner if kind is not types.NoneType)
        return None if value is None else _check(some, value, key)
    if origin is Literal:
        return _of_type(value in inner, value, key, inner)
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        return _record(kind, _of_type(isinstance(value, dict), value, key, "a table"), key)
    if origin is dict:
        table = _of_type(isinstance(value, dict), value, key, "a table")
        return {name: _check(inner[1], item, _within(key, name)) for name, item in table.items()}
    if origin in (list, tuple):
        items = _of_type(isinstance(value, list | tuple), value, key, "a list")
        kinds = [inner[0]] * len(items) if origin is list or inner[1:] == (...,) else list(inner)
        _of_type(len(kinds) == len(items), value, key, f"a list of {len(kinds)}")
        pairs = zip(kinds, items, strict=True)
        return origin(_check(one, item, f"{key}[{n}]") for n, (one, item) in enumerate(pairs))
    fits = type(value) is kind or (kind is float and type(value) is int)
    return kind(_of_type(fits, value, key, _WORDS[kind]))


def _record(kind: Any, table: dict[str, Any], key: str) -> Any:
    hints = _hints(kind)
    is_typed_dict = is_typeddict(kind)
    if is_typed_dict:
        needed, known = kind.__required_keys__, hints
    else:
        known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
        needed = {field.name for field in dataclasses.fields(kind) if _is_needed(field)}
        unknown = [name for name in table if name not in known]
        if unknown:
            raise ValueError(f"has the unknown key {_shown(_within(key, unknown[0]))}")
    lacking = [name for name in known if name in needed and name not in table]
    if lacking:
        raise ValueError(f"lacks {_shown(_within(key, lacking[0]))}")
    values = {n: _check(known[n], item, _within(key, n)) for n, item in table.items() if n in known}
    if is_typed_dict:
        return table | values
    try:
        return kind(**values)
    except ValueError as fault:
        raise ValueError(_within(key, str(fault))) from fault


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _of_type(fits: bool, value: Any, key: str, expected: str | tuple[Any, ...]) -> Any:
    if fits:
        return value
    words = expected if isinstance(expected, str) else f"one of {', '.join(map(str, expected))}"
    raise ValueError(f"{key or 'it'} is {_shown(value)}, not {words}")


def _within(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    return "null" if value is None else reprlib.repr(value)


def check_ranges(record: Any, **limits: tuple[float, float]) -> None:
    """Check the numbers of a dataclass; None passes.

    Args:
        limits: smallest and largest value by field; if they are integers, so must the value be.

    Raises:
        ValueError: a value is out of range, not whole, or no number.
    """
    for name, (least, most) in limits.items():
        value = getattr(record, name)
        kinds = (int,) if isinstance(least, int) else (int, float)
        if value is not None and not (type(value) in kinds and least <= value <= most):
            words = (
                f"a whole number from {least:,}" if isinstance(least, int) else f"from {least:g}"
            )
            raise ValueError(f"{name} is {_shown(value)}, not {words} to {most:,g}")
