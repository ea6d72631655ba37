"""`mlx-vits inspect`, thin over the package."""

from __future__ import annotations

import json

from mlx_vits.tools.inspect.gather import gather
from mlx_vits.tools.inspect.reading import read_subject
from mlx_vits.tools.inspect.show import show
from mlx_vits.tools.pages import plain


def inspect_file(file: str, against: str | None = None, *, for_machines: bool = False) -> None:
    """Print what a file or folder holds.

    Args:
        file: see `read_subject`.
        against: another one, to compare it with.
        for_machines: one JSON object instead of a page.

    Raises:
        CheckpointError: one of them is missing, unreadable or holds no net, or the two have no net
            in common.
    """
    other = read_subject(against) if against is not None else None
    facts = gather(read_subject(file), other)
    if for_machines:
        print(json.dumps(plain(facts), indent=1))
    else:
        show(facts)
