"""Block shapes, warps and pipeline stages of the Triton kernels: measured where somebody asked for it, else by a rule.

A table maps kernel, number format and size bucket to a configuration. Looked up, in this order, in the user's cache
(``tuning-<architecture>.json`` in ``$TAM_FAST_CACHE`` or the platform's cache folder), in tables that came with the
package (``tuned/<architecture>.json`` beside this file), and last in a rule. Nothing is measured unless asked for.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["KERNELS", "Configuration", "Tuner", "bucket", "cache_folder", "candidates", "default", "is_requested"]

_FORMAT = 1
_SHIPPED = Path(__file__).resolve().parent / "tuned"


@dataclass(frozen=True)
class Configuration:
    """How a kernel is compiled: block sizes by name, warps a program, stages of software pipelining."""

    blocks: Mapping[str, int]
    warps: int
    stages: int

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {"blocks": dict(self.blocks), "warps": self.warps, "stages": self.stages}

    @classmethod
    def from_json(cls, kernel: str, value: Any) -> Configuration:
        """Check and take over a table's entry for a kernel.

        Raises
        ------
        ValueError
            If it is not one: the kernel has other blocks, or a number is no power of two or out of range.
        """
        names = KERNELS[kernel.partition(".")[0]]
        if not isinstance(value, dict) or set(value.get("blocks") or ()) != set(names):
            raise ValueError(f"expected blocks {', '.join(names)}, got {value!r}")
        blocks, warps, stages = value["blocks"], value.get("warps"), value.get("stages")
        for name, number, largest in (*((n, blocks[n], 4096) for n in names), ("warps", warps, 32)):
            if type(number) is not int or not 1 <= number <= largest or number & (number - 1):
                raise ValueError(f"expected {name} to be a power of two from 1 to {largest}, got {number!r}")
        if type(warps) is not int or type(stages) is not int or not 1 <= stages <= 8:
            raise ValueError(f"expected stages from 1 to 8, got {stages!r}")
        return cls({name: blocks[name] for name in names}, warps, stages)


KERNELS: dict[str, tuple[str, ...]] = {
    "token_scores": ("BLOCK_U", "BLOCK_P", "BLOCK_C"),
    "step_scores": ("BLOCK_P", "BLOCK_C"),
    "interference": ("BLOCK_T", "BLOCK_N", "BLOCK_K"),
    "interference_few": ("BLOCK_N", "BLOCK_K"),
    "interference_from_states": ("BLOCK_T", "BLOCK_N", "BLOCK_K", "BLOCK_C"),
    "rank_gaussian_filter": ("ROWS", "LANES", "COLUMNS"),
    "rank_gaussian_filter_ranked": ("PIXELS",),
    "finish_maps": ("ROWS", "LANES", "BLOCK"),
    "least_squares_scale": ("BLOCK",),
}
"""Block sizes that each kernel is compiled with. A name may go on after a dot: ``finish_maps.3`` for a window of 3."""


def bucket(sizes: Iterable[int]) -> tuple[int, ...]:
    """Sizes up to the next power of two, as exponents: those of a bucket share a configuration."""
    return tuple(max(int(size) - 1, 0).bit_length() for size in sizes)


def _configuration(kernel: str, *blocks: int, warps: int = 4, stages: int = 3) -> Configuration:
    return Configuration(dict(zip(KERNELS[kernel], blocks, strict=True)), warps, stages)


def default(kernel: str, number_format: str, sizes: tuple[int, ...]) -> Configuration:
    """Return the configuration of a bucket that nobody has measured.

    Parameters
    ----------
    kernel : str
        As in :data:`KERNELS`, perhaps with a dot and what else it is compiled for.
    number_format : str
        ``float32`` (products in float32), ``tf32``, ``float16``, ``bfloat16`` or ``float64``; ``-strided`` after it
        where rows cannot be read in 16 bytes at a time.
    sizes : tuple of int
        Exponents of :func:`bucket`.
    """
    name, _, window = kernel.partition(".")
    strided = number_format.endswith("-strided")
    precise = number_format.startswith("float32")  # no tensor cores: operands lie in registers
    if name == "token_scores":
        if precise or strided:
            return _configuration(name, 32, 64, 16)
        channels = 32 if number_format == "tf32" else 64
        if sizes[0] >= 8 and sizes[1] >= 12:
            return _configuration(name, 64, 128, channels, warps=8)
        return _configuration(name, 16 if sizes[0] <= 4 else 32 if sizes[0] == 5 else 64, 64, channels)
    if name == "step_scores":
        return _configuration(name, 8, 256)
    if name == "interference":
        return _configuration(name, 32, 64, 16)
    if name == "interference_few":
        return _configuration(name, 32, 64)
    if name == "interference_from_states":
        # Loads that are not asynchronous would be held in registers for a stage, and there are two products.
        held = precise or strided
        return _configuration(name, 32, 32, 16, 16 if held else 32, stages=1 if held else 3)
    if name == "rank_gaussian_filter":
        # Lanes of four columns and longer strips take fewer instructions a pixel, but then there must be many pixels.
        if window == "3" and sizes[0] >= 21:
            warps = 8 if number_format == "float16" else 4  # with 4, a register of float16's would spill
            return _configuration(name, 8 if sizes[0] == 21 else 16, 128 * warps, 4, warps=warps)
        return _configuration(name, 8, 128, 1)
    if name == "rank_gaussian_filter_ranked":
        # A program's windows fill 1024 slots.
        slots = max(2 ** math.ceil(math.log2(int(window) ** 2)), 64)
        return _configuration(name, 1024 // slots, warps=8)
    if name == "finish_maps":
        # One stage: what the kernel loads it has itself just written, so nothing may be loaded ahead of its turn.
        return _configuration(name, 8, 256, 1024, warps=8, stages=1)
    return _configuration(name, 1024)


def candidates(kernel: str, number_format: str, sizes: tuple[int, ...]) -> list[Configuration]:
    """Return the configurations that :meth:`Tuner.tune` measures, the rule's first."""
    name, _, window = kernel.partition(".")
    found = [default(kernel, number_format, sizes)]
    pixels = found[0].blocks.get("PIXELS", 1)
    # Block sizes, warps, stages.
    choices: dict[str, list[tuple[tuple[int, ...], int, int]]] = {
        "token_scores": [
            (shape, warps, stages)
            for shape in ((16, 64, 64), (32, 64, 64), (64, 64, 32), (64, 64, 64), (64, 128, 64), (128, 128, 64))
            for warps in (4, 8)
            for stages in (3, 4)
        ],
        "step_scores": [((p, c), w, 3) for p in (4, 8, 16, 32) for c in (128, 256, 512) for w in (4, 8)],
        "interference": [
            ((t, n, 16), w, 3) for t, n in ((16, 64), (32, 32), (32, 64), (64, 64), (32, 128)) for w in (2, 4, 8)
        ],
        "interference_few": [((n, k), w, 3) for n in (16, 32, 64) for k in (32, 64, 128) for w in (2, 4, 8)],
        "interference_from_states": [
            ((t, n, 16, c), w, 3) for t, n in ((16, 64), (32, 32), (32, 64)) for c in (32, 64) for w in (4, 8)
        ],
        "rank_gaussian_filter": [
            ((r, 32 * w * c, c), w, 3)
            for r in (4, 8, 16, 32)
            for w in (2, 4, 8)
            for c in ((1, 2, 4) if window == "3" else (1,))
        ],
        "rank_gaussian_filter_ranked": [((p,), w, 3) for p in (pixels, 2 * pixels) for w in (4, 8)],
        "finish_maps": [((r, 32 * w, 32 * w * n), w, 1) for r in (4, 8) for w in (4, 8, 16) for n in (2, 4)],
        "least_squares_scale": [((b,), w, 3) for b in (512, 1024, 2048) for w in (4, 8)],
    }
    found += [_configuration(name, *shape, warps=warps, stages=stages) for shape, warps, stages in choices[name]]
    return list({json.dumps(item.as_json(), sort_keys=True): item for item in found}.values())


def cache_folder() -> Path:
    """Folder of the user's tables: ``$TAM_FAST_CACHE``, else ``tam_fast`` in the platform's cache folder."""
    given = os.environ.get("TAM_FAST_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tam_fast"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tam_fast"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tam_fast"


def is_requested() -> bool:
    """Whether ``TAM_FAST_AUTOTUNE=1`` asks for measurements where there are none."""
    return os.environ.get("TAM_FAST_AUTOTUNE", "") not in ("", "0")


def _key(kernel: str, number_format: str, sizes: tuple[int, ...]) -> str:
    return f"{kernel}|{number_format}|{','.join(map(str, sizes))}"


def read_table(path: Path) -> dict[str, Configuration]:
    """Read a table. What cannot be read, or is no configuration, is warned about and left out."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path}: expected a table of kernel configurations, ignored: {error}", stacklevel=2)
        return {}
    entries = document.get("configurations") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or document.get("format") != _FORMAT:
        warnings.warn(f"{path}: expected a table of kernel configurations of format {_FORMAT}, ignored", stacklevel=2)
        return {}
    table = {}
    for key, value in entries.items():
        kernel = key.partition("|")[0]
        if kernel.partition(".")[0] not in KERNELS:
            continue  # of another version
        try:
            table[key] = Configuration.from_json(kernel, value)
        except ValueError as error:
            warnings.warn(f"{path}: {key}: {error}; ignored", stacklevel=2)
    return table


def write_table(path: Path, additions: Mapping[str, Configuration]) -> None:
    """Add configurations to a table; readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {**read_table(path), **additions}
    document = {"format": _FORMAT, "configurations": {key: table[key].as_json() for key in sorted(table)}}
    handle, name = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@dataclass
class Tuner:
    """The configurations of one device architecture.

    Attributes
    ----------
    architecture : str
        ``sm_90``, ``gfx942``, ``interpreter``.
    used : dict
        Every configuration that was asked for, with where it came from: ``"measured"``, a table's path or ``"rule"``.
    """

    architecture: str
    used: dict[str, tuple[Configuration, str]] = field(default_factory=dict)
    _tables: list[tuple[str, dict[str, Configuration]]] | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def cache(self) -> Path:
        """The user's table."""
        return cache_folder() / f"tuning-{self.architecture}.json"

    def find(self, kernel: str, number_format: str, sizes: Iterable[int]) -> tuple[Configuration, bool]:
        """Return the configuration for some sizes, and whether it was ever measured."""
        key = _key(kernel, number_format, bucket(sizes))
        found = self.used.get(key)
        if found is None:
            with self._lock:
                found = self.used[key] = self._look_up(key, kernel, number_format, bucket(sizes))
        return found[0], found[1] != "rule"

    def _look_up(self, key: str, kernel: str, number_format: str, sizes: tuple[int, ...]) -> tuple[Configuration, str]:
        if self._tables is None:
            paths = (self.cache, _SHIPPED / f"{self.architecture}.json")
            self._tables = [(str(path), read_table(path)) for path in paths]
        for path, table in self._tables:
            if key in table:
                return table[key], path
        return default(kernel, number_format, sizes), "rule"

    def tune(
        self,
        kernel: str,
        number_format: str,
        sizes: Iterable[int],
        measure: Callable[[Configuration], float | None],
    ) -> Configuration:
        """Measure the candidates for some sizes, use the fastest from now on, and keep it in the user's cache.

        Parameters
        ----------
        measure : callable
            Returns the time that a configuration takes, or None if it cannot be compiled or is not acceptable.

        Warns
        -----
        UserWarning
            If the cache cannot be written; the configuration is used all the same.
        """
        exponents = bucket(sizes)
        key = _key(kernel, number_format, exponents)
        with self._lock:
            times: list[tuple[float, int, Configuration]] = []
            for configuration in candidates(kernel, number_format, exponents):
                time = measure(configuration)
                if time is not None and math.isfinite(time):
                    times.append((time, len(times), configuration))
            best = min(times)[2] if times else default(kernel, number_format, exponents)
            self.used[key] = best, "measured" if times else "rule"
            if times:
                try:
                    write_table(self.cache, {key: best})
                except OSError as error:
                    warnings.warn(f"{self.cache}: cannot keep what was measured: {error}", stacklevel=2)
            return best

    def info(self) -> dict[str, Any]:
        """Return every configuration in use and where it came from."""
        used = sorted(self.used.items())
        return {key: {**configuration.as_json(), "from": source} for key, (configuration, source) in used}
