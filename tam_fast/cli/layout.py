"""``tam-fast layout``: where a model's visual tokens lie on an image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tam_fast.cli.console import (
    Debug,
    ExitCode,
    Failure,
    failures,
    one_line,
    print_json,
    printable,
    reason,
    shortened,
    to_stdout,
)
from tam_fast.cli.images import decode, find_images
from tam_fast.cli.loading import check_folder, quiet_libraries
from tam_fast.cli.results import Targets, make_folder

if TYPE_CHECKING:
    from PIL import Image

    from tam_fast.maps.layout import Layout

__all__ = ["layout"]


def layout(
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE", help="An image file or a pipe, '-' for standard input.", show_default=False),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="ID_OR_CONFIG",
            help="A model hub id, a folder with a model's configuration and processor (no weights are needed), or the "
            "config.json in it. Without it, the small model that comes with the package.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="A .png file, or the folder for it.")
    ] = Path("tam-fast-out"),
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", help="Refuse larger images, by the size in the file's head.")
    ] = 64_000_000,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file of this name even if another program wrote it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the grids as a JSON document.")] = False,
    debug: Debug = False,
) -> None:
    """Draw where a model's visual tokens lie on an image, each cell with its number in a map.

    Tiles and the overview of the whole image are drawn apart. What a grid covers beyond the image is padding.
    """
    with failures(debug):
        if max_pixels < 1:
            raise Failure(ExitCode.USAGE, f"--max-pixels: expected at least 1, got {max_pixels}")
        if model is not None and not model.strip():
            raise Failure(ExitCode.USAGE, f"--model: expected a model hub id or a folder, got {model!r}")

        def fail(name: str, failure: Failure) -> None:
            raise Failure(failure.code, f"{shortened(name) or repr(name)}: {failure}")

        (source,) = find_images([image], max_pixels, fail)
        picture = decode(source, max_pixels, quiet=False)
        config, processor, where = _load(model, debug)
        found = _layout(config, processor, picture)
        one_file = output.suffix.lower() == ".png"
        folder = output.parent if one_file else output
        make_folder(folder)
        inputs: list[str | Path] = [name for name in (image, where) if name not in ("-", None)]
        targets = Targets(folder, inputs, force)
        path = output if one_file else targets.choose(f"{source.stem}-layout")["sheet"]
        targets.check({"sheet": path})
        _write(path, _draw(picture, found))
        if as_json:
            print_json({"model_type": config.model_type, "file": str(path), **_describe(found)})
            return
        with to_stdout() as stdout:
            print(printable(f"{source.name}  ({config.model_type}; {found.offsets[-1]} cells)"), file=stdout)
            for grid, first in zip(found.grids, found.offsets, strict=False):
                box = ", ".join(f"{edge:.4g}" for edge in grid.box)
                print(f"  {grid.kind} {grid.height} x {grid.width}, cells from {first}, box {box}", file=stdout)
            print(printable(f"  {path}"), file=stdout)


def _load(model: str | None, debug: bool) -> tuple[Any, Any, Path | None]:
    """Load a configuration and a processor; also the folder that they lie in."""
    import transformers

    from tam_fast.demo import ASSETS
    from tam_fast.models.processors import load_processor

    if not debug:
        quiet_libraries()
    name = str(ASSETS) if model is None else model
    path = Path(name)
    if path.is_file() and path.name == "config.json":
        name = str(path.parent)
    try:
        check_folder(name)
        config: Any = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        processor = load_processor(name, trust_remote_code=False)
    except Failure:
        raise
    except Exception as error:  # damaged files make transformers raise nearly anything
        text = reason(error) if isinstance(error, OSError) else error
        raise Failure(ExitCode.MODEL, f"--model: cannot use {shortened(name)!r}: {one_line(text)}") from error
    return config, processor, Path(name) if Path(name).is_dir() else None


def _layout(config: Any, processor: Any, picture: Image.Image) -> Layout:
    from tam_fast.models.inputs import prepare_inputs

    try:
        return prepare_inputs(config, processor, [picture], "Describe this image.").layout
    except (ValueError, TypeError) as error:
        raise Failure(ExitCode.MODEL, one_line(error)) from error


def _draw(picture: Image.Image, found: Layout) -> Image.Image:
    from tam_fast.render import Lattice, cells

    panels: dict[str, list[Lattice]] = {}
    for grid, first in zip(found.grids, found.offsets, strict=False):
        lattices = panels.setdefault("overview" if grid.kind == "overview" else "image", [])
        lattices.append(Lattice(grid.height, grid.width, grid.box, first, f"{grid.kind} {len(lattices) + 1}"))
    titles = {"overview": "overview", "image": "tiles" if len(panels) > 1 else "image"}
    return cells(picture, [(_title(titles[name], lattices), lattices) for name, lattices in panels.items()])


def _title(name: str, lattices: list[Any]) -> str:
    sizes = dict.fromkeys(f"{lattice.height} x {lattice.width}" for lattice in lattices)
    return f"{name}: {', '.join(sizes)} cells" + (f", {len(lattices)} grids" if len(lattices) > 1 else "")


def _write(path: Path, picture: Image.Image) -> None:
    from PIL.PngImagePlugin import PngInfo

    from tam_fast.explanation.replacing import PICTURE_MARK, replace_files

    mark = PngInfo()
    mark.add_text(*PICTURE_MARK)
    data = io.BytesIO()
    picture.save(data, format="PNG", pnginfo=mark)
    try:
        replace_files({path: data.getvalue()})
    except OSError as error:
        raise Failure(ExitCode.FILE, f"the result cannot be written: {reason(error, file=True)}") from error


def _describe(found: Layout) -> dict[str, Any]:
    return {
        "grids": [
            {
                "kind": grid.kind,
                "height": grid.height,
                "width": grid.width,
                "source": grid.source,
                "frame": grid.frame,
                "box": list(grid.box),
                "first_cell": first,
                "positions": grid.positions.tolist(),
            }
            for grid, first in zip(found.grids, found.offsets, strict=False)
        ],
        "prompt": found.prompt.tolist(),
        "answer_start": found.answer_start,
    }
