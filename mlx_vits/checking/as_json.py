"""The facts for machines.

The keys are the attributes of `VoiceFacts` and the classes within it, and they stay as they are;
new ones may come. `verdict` is what the text output ends with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from mlx_vits.checking.facts import Verdict, VoiceFacts


def as_json(facts: VoiceFacts, verdict: Verdict) -> dict[str, Any]:
    """One JSON object; a number that is not finite is null."""
    values: dict[str, Any] = _plain(facts)
    return values | {"verdict": _plain(verdict)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
