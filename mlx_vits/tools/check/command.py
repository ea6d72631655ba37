"""`mlx-vits check`, thin over the package."""

from __future__ import annotations

import json

from mlx_vits.tools.check.gather import gather
from mlx_vits.tools.check.show import follow_reading, show
from mlx_vits.tools.check.subject import CheckOptions, find_subject
from mlx_vits.tools.check.verdict import judge
from mlx_vits.tools.pages import plain


def check_voice(voice: str, options: CheckOptions, *, for_machines: bool) -> int:
    """Print what is to be said of a voice's data.

    Args:
        voice: see `find_subject`.
        options: how it is looked at.
        for_machines: one JSON object instead of a page.

    Returns:
        The exit status: 0 where it can be trained on, 2 where training would refuse it.

    Raises:
        UserError: it cannot be read at all.
    """
    facts = gather(find_subject(voice, options), follow_reading)
    verdict = judge(facts)
    if for_machines:
        print(json.dumps(plain(facts) | {"verdict": plain(verdict)}, indent=1))
    else:
        show(facts, verdict)
    return verdict.status
