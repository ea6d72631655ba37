"""The facts for machines.

The keys are the attributes of `Facts` and the classes within it, and they stay as they are; new
ones may come. Each net has `remarks` besides: what the text output says in sentences. What is not
known is null, and so is a number that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mlx_vits.inspecting.facts import Facts
from mlx_vits.inspecting.remarks import remarks


def as_json(facts: Facts) -> dict[str, Any]:
    """One JSON object."""
    values: dict[str, Any] = _plain(asdict(facts))
    for net, gathered in zip(values["nets"], facts.nets, strict=True):
        net["remarks"] = [remark._asdict() for remark in remarks(gathered)]
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
