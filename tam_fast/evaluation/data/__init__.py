"""What is evaluated on: :func:`open_data` opens a data set, whose items are :class:`Item`.

A reader is one small class (:class:`Reader`), and one line in :data:`LAYOUTS`. Nothing is fetched, nothing is
unpickled, only regular files are opened; an image or a mask that cannot be read is its item's error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tam_fast.evaluation.data.prompts import PROMPTS, prompt_of

if TYPE_CHECKING:
    from tam_fast.evaluation.data.item import Item, Opener, Reader

__all__ = ["LAYOUTS", "PROMPTS", "Item", "Layout", "Reader", "open_data", "prompt_of", "register"]


@dataclass(frozen=True)
class Layout:
    """A way in which data sets lie on a disk.

    Attributes
    ----------
    name : str
    about : str
        What it is, in a few words.
    home : str
        ``module:Class``, loaded when it is needed.
    given : callable, optional
        What opens it, in place of `home`.
    told : callable, optional
        Whether a path is of this layout; without it, only who names the layout gets it.
    named : bool
        Whether the reader is told the layout's name.
    """

    name: str
    about: str
    home: str = ""
    given: Opener | None = None
    told: Callable[[Path], bool] | None = None
    named: bool = False

    @property
    def opener(self) -> Any:
        """The reader's class, or what was registered."""
        if self.given is not None:
            return self.given
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"tam_fast.evaluation.data.{module}"), name)

    def fits(self, path: Path) -> bool:
        """Whether a path is of this layout, by the files that are there."""
        told = self.told if self.given is not None else getattr(self.opener, "fits", None)
        return told is not None and bool(told(path))

    def open(self, path: Any, **options: Any) -> Reader:
        """Open a data set."""
        named = {"layout": self.name} if self.named else {}
        reader: Reader = self.opener(path, **named, **options)
        return reader


_layouts: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("coco", "COCO captions: annotations/, image/, seg_label/", "coco:CocoCaptions"),
        Layout("grandf", "GranDf: anno.json", "anno:Annotated", named=True),
        Layout("openpsg", "OpenPSG: anno.json", "anno:Annotated", named=True),
        Layout("anno", "rows [image, text, label image, {name: label}] in anno.json", "anno:Annotated", named=True),
        Layout("boxes", "expressions with boxes, in JSON or JSON lines", "boxes:Expressions"),
        Layout("table", "Parquet, Arrow, or a data set that `datasets` saved", "tables:Table"),
        Layout("folder", "images, and masks of the same names", "folder:ImageFolder"),
    )
}
LAYOUTS: Mapping[str, Layout] = _layouts
"""Layouts by name, in the order in which they are looked for."""

_TOLD = ("coco", "anno", "table", "boxes", "folder")
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+):/")
_OFFICIAL = (("coco", "coco"), ("GranDf", "grandf"), ("OpenPSG", "openpsg"))


def register(name: str, about: str = "", fits: Callable[[Path], bool] | None = None) -> Callable[[Opener], Opener]:
    """Register a reader; a decorator of its class, or of a function that returns a reader.

    ::

        @register("sketches", fits=lambda path: (path / "sketches.csv").is_file())
        class Sketches: ...

        open_data("some/folder")                      # told by its files
        open_data("some/folder", layout="sketches")
        open_data("sketches://some/folder?page=3")    # is called with "some/folder?page=3"

    Parameters
    ----------
    name : str
        Small letters, digits, ``+``, ``.``, ``-``.
    about : str
    fits : callable, optional
        Whether a path is of this layout; such layouts go before those of the house.

    Raises
    ------
    ValueError
        If there is one of this name, or it is no name.
    """
    if name in _layouts or name == "demo" or not re.fullmatch(r"[a-z][a-z0-9+.-]+", name):
        raise ValueError(f"name: expected small letters and digits, and none of {', '.join(_layouts)}, got {name!r}")

    def keep(opener: Opener) -> Opener:
        _layouts[name] = Layout(name, about, given=opener, told=fits)
        return opener

    return keep


def open_data(
    data: Any,
    *,
    prompt: str | None = None,
    layout: str | None = None,
    compat: str | None = None,
    **options: Any,
) -> Reader:
    """Open a data set.

    ::

        open_data("demo://scenes?n=300&seed=7")            # of the embedded model, see data.scenes
        open_data("data/coco2014")                         # told by the files that are there
        open_data("data/GranDf", layout="grandf")
        open_data("refcoco_val.jsonl", box_format="xyxy")
        open_data("val.parquet", references="captions", image="jpg")

    Parameters
    ----------
    data : path, text, rows, ``datasets.Dataset``, or Reader
        A reader is returned as it is.
    prompt : str, optional
        What is asked, or a name of :data:`PROMPTS`; by default what the layout's protocol asks, or None, which leaves
        it to the run.
    layout : str, optional
        A name of :data:`LAYOUTS`; by default it is told by the files.
    compat : None or "official"
        ``"official"``: as the published script reads it. A folder's layout, where none is given, is told by "coco",
        "GranDf" or "OpenPSG" somewhere in its path; two categories of COCO have other names; a missing mask is zeros.
    **options
        Of the layout's reader, such as names of columns.

    Returns
    -------
    Reader

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If there is no such data, its layout cannot be told, or an argument is unknown.
    """
    if compat not in (None, "official"):
        raise ValueError(f'compat: expected None or "official", got {compat!r}')
    if layout is not None and layout not in _layouts:
        raise ValueError(f"layout: expected one of {', '.join(_layouts)}, got {layout!r}")
    given = {"prompt": prompt, "compat": compat}
    if not isinstance(data, (str, os.PathLike)):
        if hasattr(data, "fingerprint") and hasattr(data, "__iter__") and callable(data.fingerprint):
            if options or layout is not None or prompt is not None:
                raise ValueError("data: expected a path with options, got a reader, which is opened already")
            found: Reader = data
            return found
        if layout not in (None, "table"):
            raise ValueError(f"layout: expected a path with {layout!r}, got {type(data).__name__}")
        return _called(_layouts["table"], data, given, options)
    text = os.fspath(data)
    scheme = _SCHEME.match(text) if isinstance(data, str) else None
    if scheme is not None and not Path(text).exists():
        return _behind_scheme(scheme[1], text, given, options)
    path = Path(text)
    if not path.exists():
        raise FileNotFoundError(f"data: expected a file, a folder or demo://scenes, got nothing at {text!r}")
    if layout is None:
        layout = _official(path, text) if compat == "official" and path.is_dir() else _told(path)
    return _called(_layouts[layout], path, given, options)


def _behind_scheme(scheme: str, text: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> Reader:
    rest = text[len(scheme) + 1 :].removeprefix("//")
    if scheme == "demo":
        from tam_fast.evaluation.data.scenes import Scenes

        if options:
            raise ValueError(f"columns: expected none with demo://, got {', '.join(options)}")
        return Scenes.open(rest, **given)
    if scheme not in _layouts or _layouts[scheme].given is None:
        raise ValueError(f"data: expected a path or demo://scenes, got {text!r}: nothing is fetched, download it first")
    return _called(_layouts[scheme], rest, given, options)


def _called(layout: Layout, data: Any, given: Mapping[str, Any], options: Mapping[str, Any]) -> Reader:
    # A reader of one's own need not know of what is not asked for.
    asked = {key: value for key, value in given.items() if value is not None}
    if "layout" in options:
        raise ValueError("layout: expected it once, got it twice")
    try:
        return layout.open(data, **asked, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        wrong = str(error).rpartition("argument ")[2]
        raise ValueError(f"columns: expected options of the layout {layout.name!r}, got {wrong}") from error


def _told(path: Path) -> str:
    """Tell a layout by the files that are there."""
    own = [name for name, layout in _layouts.items() if layout.given is not None]
    for name in (*own, *_TOLD):
        if _layouts[name].fits(path):
            return name
    known = "; ".join(f"{layout.name}: {layout.about}" for layout in _layouts.values())
    raise ValueError(f"layout: expected a data set of one of these layouts, got {path} ({known})")


def _official(path: Path, text: str) -> str:
    """Tell a layout as the published script does."""
    for part, name in _OFFICIAL:
        if part in text:
            return name
    parts = ", ".join(repr(part) for part, _ in _OFFICIAL)
    raise ValueError(
        f"layout: expected a path with {parts} in it, by which the published script tells layouts, got {path}: give one"
    )


def __getattr__(name: str) -> Any:
    if name in ("Item", "Reader"):
        return getattr(import_module("tam_fast.evaluation.data.item"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
