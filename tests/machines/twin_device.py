"""A device in host memory, for the kernels' twins: its tensors cannot be mixed with the CPU's, as a GPU's cannot.

Emulated and interpreted kernels work on host memory. Were they given CPU tensors, a copy that is missing would not
show. Tensors of ``DEVICE`` wrap CPU tensors and have their addresses; every operation is done on what they wrap, and
those that a GPU would refuse raise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from tam_fast.backends import selection
from tam_fast.maps import answer, scores
from tam_fast.operators import library

NAME = "twin"


class _Module(backend_registration._DummyBackendModule):
    """Says that there is no accelerator, so that tests beside these run as on any machine without one."""

    def is_available(self) -> bool:
        return False


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)

aten = torch.ops.aten
# Operations that take tensors of both devices.
_COPIES = {aten.copy_.default, aten._to_copy.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class TwinTensor(Tensor):
    """A tensor of the device, around one of the CPU."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> TwinTensor:
        made: TwinTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host = host
        return made

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def tolist(self) -> Any:
        return self.host.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"TwinTensor({self.host!r})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        return dispatch(function, arguments, options or {})


def is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def dispatch(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if function.namespace == "tam_fast":
        return getattr(library, f"_{function.name().partition('::')[2]}")(*arguments, **options)
    leaves = pytree.tree_leaves((arguments, options))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    refuse_mixture(function, tensors)
    wrappers = {id(leaf.host): leaf for leaf in tensors if isinstance(leaf, TwinTensor)}
    on_device = bool(wrappers)
    if "device" in options:
        on_device = is_ours(options["device"]) or (options["device"] is None and on_device)
        options = {name: value for name, value in options.items() if name != "pin_memory"} | {"device": "cpu"}
    if function is aten.copy_.default:
        on_device = isinstance(arguments[0], TwinTensor)
    if function is aten._local_scalar_dense.default:
        on_device = False
    arguments, options = pytree.tree_map_only(TwinTensor, lambda leaf: leaf.host, (arguments, options))
    result = function(*arguments, **options)

    def wrap(leaf: Tensor) -> Tensor:
        found = wrappers.get(id(leaf))
        if found is not None:
            assert found.shape == leaf.shape, f"{function} has resized a tensor"
            return found
        return TwinTensor(leaf) if on_device else leaf

    return pytree.tree_map_only(Tensor, wrap, result)


def refuse_mixture(function: Any, tensors: list[Tensor]) -> None:
    """Raise for what a GPU's kernels refuse: tensors of the CPU, but for numbers, copies and indices."""
    if function in _COPIES or not any(isinstance(x, TwinTensor) for x in tensors):
        return
    for x in tensors:
        if not isinstance(x, TwinTensor) and x.dim() > 0:
            if function in _INDEXING and x.dtype in (torch.int64, torch.bool, torch.uint8):
                continue
            raise RuntimeError(f"{function}: expected all tensors on {DEVICE}, got one on {x.device}")


_everything = torch.library.Library("_", "IMPL")


def _fallback(function: Any, *arguments: Any, **options: Any) -> Any:
    return dispatch(function, arguments, options)


_everything.fallback(_fallback, "PrivateUse1")


def _arange(*arguments: Any, device: Any = None, pin_memory: Any = None, **options: Any) -> Tensor:
    return TwinTensor(torch.arange(*arguments, device="cpu", **options))


# By default made empty and resized.
_aten = torch.library.Library("aten", "IMPL")
for _name in ("arange", "arange.start", "arange.start_step"):
    _aten.impl(_name, _arange, "PrivateUse1")


class HostGenerator(torch.Generator):
    """The CPU's generator for tensors of the device."""

    def __new__(cls, device: Any = "cpu") -> HostGenerator:
        return super().__new__(cls, "cpu" if is_ours(device) else device)


def _made_on_the_host(make: Callable[..., Tensor], data: Any, *, device: Any = None, **options: Any) -> Tensor:
    if isinstance(data, TwinTensor):
        return make(data.host, device="cpu", **options).to(DEVICE if device is None else device)
    data = pytree.tree_map_only(TwinTensor, TwinTensor.tolist, data)
    return make(data, device="cpu", **options).to(device) if is_ours(device) else make(data, device=device, **options)


def serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let emulated and interpreted kernels take tensors of the device, where they would take the CPU's."""
    refuses = selection._refuses

    def on_cpu(device: torch.device) -> torch.device:
        return torch.device("cpu") if device.type == NAME else device

    monkeypatch.setattr(selection, "_refuses", lambda name, device: refuses(name, on_cpu(device)))
    # torch's own cannot make what Python keeps.
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, functools.partial(_made_on_the_host, getattr(torch, name)))
    monkeypatch.setattr(torch, "Generator", HostGenerator)
    is_dense = scores.is_dense
    for module in (answer, scores):
        monkeypatch.setattr(module, "is_dense", lambda tensor: isinstance(tensor, TwinTensor) or is_dense(tensor))
    if selection._interpreted():
        from tam_fast.backends.triton import launch

        unavailable = launch.unavailable
        monkeypatch.setattr(
            launch, "unavailable", lambda device=None: unavailable(None if device is None else on_cpu(device))
        )
