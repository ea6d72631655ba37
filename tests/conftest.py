from __future__ import annotations

import pytest

import mlx_vits  # noqa: F401  (chooses the BLAS before a test imports mlx)

# The longest first: two processes that share the files then end together.
_LONGEST = ("test_plan", "test_trainer", "test_train_step", "test_train_command")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=rank)
