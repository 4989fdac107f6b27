"""``tam-fast info``: which kernels, devices and versions are in use, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tam_fast.cli.console import Debug, failures, print_json, rich_console, to_stdout

__all__ = ["info"]

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "triton")


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
    debug: Debug = False,
) -> None:
    """Tell which kernels, devices and versions are in use, and why."""
    with failures(debug):
        found = _system()
        if as_json:
            print_json(found)
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in _flatten(found):
            table.add_row(Text(name, style="bold"), Text(value))
        with to_stdout() as stdout:
            rich_console(stdout).print(table)


def _system() -> dict[str, Any]:
    """Gather what is told."""
    import platform
    from importlib import metadata

    import torch

    from tam_fast._version import __version__
    from tam_fast.backends.selection import backend_info

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    devices = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"]
    devices += [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "tam-fast": __version__,
        "platform": platform.platform(),
        "devices": devices,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "backend": backend_info(),
    }


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Walk nested dicts and lists as (dotted name, text)."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flatten(item, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, (list, tuple)):
        yield prefix, ", ".join(map(str, value)) or "none"
    else:
        yield prefix, str(value)
