"""The facts for machines.

The keys are the attributes of `Facts` and the classes within it, and they stay as they are; new
ones may come. Each net has `remarks` besides: what the text output says in sentences. What is not
known is null, and so is a number that is not finite.
"""

from __future__ import annotations

from typing import Any

from mlx_vits.tools.inspect.facts import Facts
from mlx_vits.tools.inspect.remarks import remarks
from mlx_vits.tools.pages import plain


def as_json(facts: Facts) -> dict[str, Any]:
    """One JSON object."""
    values: dict[str, Any] = plain(facts)
    for net, gathered in zip(values["nets"], facts.nets, strict=True):
        net["remarks"] = [remark._asdict() for remark in remarks(gathered)]
    return values
