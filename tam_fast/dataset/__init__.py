"""Attribution over data sets: explanations as Parquet, gone on with after any interruption.

:func:`run` explains each row of a data set and writes parts; :func:`open_dataset` reads them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = {
    "Dataset": "opened",
    "Locked": "durable",
    "Progress": "runs",
    "Report": "runs",
    "TooManyErrors": "runs",
    "open_dataset": "opened",
    "open_source": "sources",
    "run": "runs",
}

__all__ = ["Dataset", "Locked", "Progress", "Report", "TooManyErrors", "open_dataset", "open_source", "run"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"tam_fast.dataset.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
