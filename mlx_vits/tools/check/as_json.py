"""The facts for machines.

The keys are the attributes of `VoiceFacts` and the classes within it, and they stay as they are;
new ones may come. `verdict` is what the text output ends with.
"""

from __future__ import annotations

from typing import Any

from mlx_vits.tools.check.facts import Verdict, VoiceFacts
from mlx_vits.tools.pages import plain


def as_json(facts: VoiceFacts, verdict: Verdict) -> dict[str, Any]:
    """One JSON object; a number that is not finite is null."""
    values: dict[str, Any] = plain(facts)
    return values | {"verdict": plain(verdict)}
