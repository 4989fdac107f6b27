"""Plots of insertion and deletion curves, with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tam_fast.evaluation.results import Curve

__all__ = ["matplotlib_figure", "plot_curves"]

# Okabe and Ito's colours, which are told apart by the colour-blind, too; of the light page and of the dark one.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)))
_KNOWING_NOTHING = {"random": (0, (1, 1.2)), "centre": (0, (5, 2)), "uniform": (0, (3, 1, 1, 1))}
_INK = {"light": "#1b1f24", "dark": "#e6e8ea"}
_TITLES = {"insertion": "insertion: the highest part shown first", "deletion": "deletion: the highest part taken first"}


def matplotlib_figure() -> Any:
    """Import matplotlib's class of figures.

    Raises
    ------
    ModuleNotFoundError
        Says what to install.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError("plots: expected matplotlib, got none: pip install 'tam-fast[evaluation]'") from error
    return Figure


def plot_curves(
    curves: Sequence[Curve],
    ending: str = "png",
    *,
    theme: str = "light",
    transparent: bool = False,
    most: int = 24,
) -> bytes:
    """Draw mean curves of insertion and deletion side by side; bands are 95 % intervals of the mean.

    Parameters
    ----------
    curves : sequence of Curve
        Others than insertion's and deletion's are left out.
    ending : "png", "svg" or "pdf"
    theme : "light" or "dark"
    transparent : bool
        Without a ground, for a page.
    most : int
        Methods that are drawn at most; those with the largest areas under insertion are.

    Returns
    -------
    bytes
        The file.

    Raises
    ------
    ModuleNotFoundError
        Without matplotlib; says what to install.
    ValueError
        If there is no such curve.
    """
    make_figure = matplotlib_figure()
    drawn = {name: {curve.method: curve for curve in curves if curve.figure == name} for name in _TITLES}
    if not any(drawn.values()):
        raise ValueError("curves: expected some of insertion or deletion, got none")
    methods = _methods(drawn, most)
    figure = make_figure(figsize=(10.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2)
    ink = _INK[theme]
    for place, (name, title) in enumerate(_TITLES.items()):
        panel = axes[place]
        for method in methods:
            curve = drawn[name].get(method)
            if curve is None:
                continue
            areas = np.linspace(0.0, 100.0, len(curve.mean))
            mean, error = np.asarray(curve.mean), 1.96 * np.asarray(curve.error)
            style = _style(method, methods, ink)
            panel.plot(areas, mean, label=method if place == 0 or method not in drawn["insertion"] else None, **style)
            if method not in _KNOWING_NOTHING and len(methods) <= 8:
                panel.fill_between(areas, mean - error, mean + error, color=style["color"], alpha=0.12, linewidth=0)
        panel.set_title(title, color=ink, fontsize=10, loc="left")
        panel.set_xlabel(f"share of the image that is {'shown' if name == 'insertion' else 'taken away'}, %")
        panel.set_xlim(0, 100)
        panel.grid(alpha=0.18, linewidth=0.6, color=ink)
        _ink(panel, ink)
    axes[0].set_ylabel("mean probability of the answer's tokens", color=ink)
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_color(ink)
    figure.patch.set_facecolor("#ffffff" if theme == "light" else "#14171a")
    out = io.BytesIO()
    # Nothing in the file may differ from one run to the next.
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "tam_fast"}):
        figure.savefig(out, format=ending, transparent=transparent, metadata=metadata.get(ending))
    return out.getvalue()


def _methods(drawn: dict[str, dict[str, Curve]], most: int) -> list[str]:
    """Choose and order methods by the area under insertion, the best first; those that know nothing last."""
    areas = {method: -float(np.mean(curve.mean)) for method, curve in drawn["insertion"].items()}
    areas |= {method: float(np.mean(curve.mean)) for method, curve in drawn["deletion"].items() if method not in areas}
    order = sorted(areas, key=lambda method: (areas[method], method))
    known = [method for method in order if method not in _KNOWING_NOTHING]
    if len(known) > most:
        first = [method for method in ("tam", "cam") if method in known]
        known = [method for method in known if method in first or method in known[: most - len(first)]]
    return [*known, *(method for method in order if method in _KNOWING_NOTHING)]


def _style(method: str, methods: Sequence[str], ink: str) -> dict[str, Any]:
    if method in _KNOWING_NOTHING:
        return {"color": ink, "alpha": 0.55, "linewidth": 1.1, "linestyle": _KNOWING_NOTHING[method]}
    place = [name for name in methods if name not in _KNOWING_NOTHING].index(method)
    dashes = _DASHES[place // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[place % len(_COLOURS)], "linewidth": 2.2 if method == "tam" else 1.5, "linestyle": dashes}


def _ink(panel: Any, ink: str) -> None:
    panel.set_facecolor("none")
    panel.tick_params(colors=ink, labelsize=8)
    panel.xaxis.label.set_color(ink)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(ink)
