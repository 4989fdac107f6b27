"""Which methods there are, and what each needs: :class:`Method`, :data:`METHODS`, :func:`register`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KINDS", "METHODS", "Kind", "Method", "method_of", "register"]

Kind: TypeAlias = Literal["logit", "gradient", "attention", "relevance", "perturbation"]
KINDS = ("logit", "gradient", "attention", "relevance", "perturbation")
NEEDS = ("states", "gradients", "attention", "forwards")


@dataclass(frozen=True)
class Method:
    """One way to explain tokens.

    Attributes
    ----------
    name : str
    kind : str
        ``"logit"`` (final hidden states and classifier rows), ``"gradient"``, ``"attention"``, ``"relevance"``
        (layer-wise relevance propagation) or ``"perturbation"``.
    needs : frozenset of str
        Of ``"states"``, ``"gradients"``, ``"attention"`` (queries and keys of the decoder's layers) and ``"forwards"``
        (more than one).
    signed : bool
        Whether raw maps have negative values that mean something.
    source : str
        Where it is from: paper and equation.
    cost : str
        In forwards and backwards, with T targets.
    options : mapping of str to object
        Names of its options and their defaults.
    maps : callable
        ``maps(task, **options) -> (T, N) Tensor``, of a :class:`tam_fast.methods.task.Task`: raw maps at the visual
        positions, of any float dtype and device.
    check : callable, optional
        ``check(model, **options)``: raises ModelNotSupportedError, before anything is run, where a model cannot.
    """

    name: str
    kind: Kind
    needs: frozenset[str]
    signed: bool
    source: str
    cost: str
    options: Mapping[str, Any]
    maps: Callable[..., Tensor] = field(repr=False)
    check: Callable[..., None] | None = field(default=None, repr=False)


# In the order in which their methods are listed, whichever of them is imported first.
_ROOMS = (
    *("logit", "surgery", "gradients", "saliency", "vision", "attention", "rollout", "flow", "relevance"),
    *("perturbation", "regions"),
)
_methods: dict[str, Method] = {}
_loaded = False


class _Methods(Mapping[str, Method]):
    """Every method by name, in the order of kinds and rooms, users' own last; the rooms are loaded when it is read."""

    def __getitem__(self, name: str) -> Method:
        _load()
        return _methods[name]

    def __iter__(self) -> Any:
        _load()
        return iter(sorted(_methods, key=lambda name: _place(_methods[name])))

    def __len__(self) -> int:
        _load()
        return len(_methods)

    def __repr__(self) -> str:
        return f"METHODS({', '.join(self)})"


def _place(method: Method) -> tuple[int, int]:
    package, _, room = method.maps.__module__.rpartition(".")
    ours = package == __package__ and room in _ROOMS
    return KINDS.index(method.kind), _ROOMS.index(room) if ours else len(_ROOMS)


METHODS: Mapping[str, Method] = _Methods()
"""Every method by name."""


def _load() -> None:
    global _loaded
    if not _loaded:
        for room in _ROOMS:
            import_module(f"tam_fast.methods.{room}")
        _loaded = True


def register(
    name: str,
    *,
    kind: Kind,
    needs: Any = (),
    signed: bool = False,
    source: str = "",
    cost: str = "",
    check: Callable[..., None] | None = None,
    **options: Any,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a method of one's own; a decorator of the function that makes its raw maps.

    ::

        @tam_fast.methods.register("norm", kind="logit", needs=["states"], source="ours", cost="1 forward")
        def norm(task):
            return task.hidden()[task.visual].norm(dim=1).expand(len(task), -1)

    Parameters
    ----------
    name : str
        What it is called by; not one that is there already.
    kind, needs, signed, source, cost, check, **options
        See :class:`Method`.

    Raises
    ------
    ValueError, TypeError
        If the name is taken or no name, or kind or needs are unknown.
    """
    if not isinstance(name, str) or not name or "+" in name:
        raise TypeError(f"name: expected a name without '+', got {name!r}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    wanted = frozenset([needs] if isinstance(needs, str) else needs)
    if wanted - set(NEEDS):
        raise ValueError(f"needs: expected some of {', '.join(NEEDS)}, got {', '.join(sorted(wanted - set(NEEDS)))}")

    def free() -> None:
        if name in _methods:
            raise ValueError(f"name: expected one that is free, got {name!r}")

    def take(maps: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if not maps.__module__.startswith(f"{__package__}."):
            _load()  # names of the library's are taken, and come first, also where nobody has asked for them yet
        free()
        _methods[name] = Method(name, kind, wanted, signed, source, cost, MappingProxyType(dict(options)), maps, check)
        return maps

    free()
    return take


def method_of(name: Any) -> Method:
    """Look a method up by its name.

    Raises
    ------
    ValueError
        If there is none; lists those that are.
    """
    if not isinstance(name, str):
        raise TypeError(f"method: expected a name, got {type(name).__name__}")
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]
