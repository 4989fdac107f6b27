"""The operators: validate, document, and hand over to ``torch.ops.tam_fast``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.backends import selection
from tam_fast.operators import library  # noqa: F401  (registers torch.ops.tam_fast)

__all__ = [
    "estimated_causal_inference",
    "least_squares_scale",
    "rank_gaussian_filter",
    "token_scores",
]

ArrayLike: TypeAlias = "Tensor | NDArray[Any]"
_A = TypeVar("_A", Tensor, NDArray[Any])

MAX_KERNEL_SIZE = 15
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FLOAT_NAMES = "float32, float16, bfloat16 or float64"
_INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a numpy.ma.MaskedArray: fill it first")
    if isinstance(value, np.ndarray):
        dtype = value.dtype
        if dtype.kind in "OUSVmM":
            raise TypeError(f"{name}: expected a numeric array, got dtype {dtype}")
        if not dtype.isnative:
            value = value.astype(dtype.newbyteorder("="))
        if (
            not value.flags.writeable
            or not value.flags.aligned
            or any(stride < 0 or stride % dtype.itemsize for stride in value.strides)
        ):
            # torch shares neither read-only nor backward arrays, nor fields of packed records.
            value = value.copy()
        try:
            return torch.from_numpy(value)
        except TypeError as error:
            raise TypeError(f"{name}: expected a dtype that torch has, got {dtype}") from error
    raise TypeError(f"{name}: expected a torch.Tensor or numpy.ndarray, got {type(value).__name__}")


def _float_tensor(value: Any, name: str) -> Tensor:
    tensor = _tensor(value, name)
    if tensor.is_nested:
        raise TypeError(f"{name}: expected a dense (strided) tensor or a list of them, got a nested tensor")
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected dtype {_FLOAT_NAMES}, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got layout {tensor.layout}")
    return tensor


def _index_tensor(value: Any, name: str, device: torch.device) -> Tensor:
    if isinstance(value, (list, tuple, range)):
        try:
            value = torch.as_tensor(list(value)) if len(value) else torch.empty(0, dtype=torch.int64)
        except (TypeError, ValueError) as error:
            kinds = ", ".join(sorted({type(item).__name__ for item in value}))
            raise TypeError(f"{name}: expected integers, got {kinds}") from error
        except (OverflowError, RuntimeError) as error:
            raise ValueError(f"{name}: expected integers of 64 bits, got one that is larger") from error
    tensor = _tensor(value, name)
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name}: expected integers, got dtype {tensor.dtype}")
    if tensor.ndim != 1:
        raise ValueError(f"{name}: expected one dimension (T,), got shape {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint64 and bool((tensor.to(torch.int64) < 0).any()):
        raise ValueError(f"{name}: expected integers of 64 bits, got one that is larger")
    return tensor.to(device=device, dtype=torch.int64)


def _check_kernel_size(kernel_size: Any) -> int:
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, (int, np.integer)):
        raise TypeError(f"kernel_size: expected an integer, got {type(kernel_size).__name__}")
    if kernel_size < 1 or kernel_size % 2 == 0 or kernel_size > MAX_KERNEL_SIZE:
        raise ValueError(f"kernel_size: expected an odd number from 1 to {MAX_KERNEL_SIZE}, got {int(kernel_size)}")
    return int(kernel_size)


def _check_maps(maps: Any, name: str) -> Tensor:
    tensor = _float_tensor(maps, name)
    if tensor.ndim < 2:
        raise ValueError(f"{name}: expected at least two dimensions (..., H, W), got shape {tuple(tensor.shape)}")
    if tensor.shape[-2] == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name}: expected H >= 1 and W >= 1 in (..., H, W), got shape {tuple(tensor.shape)}")
    return tensor


def _check_matrix(value: Any, name: str, dimensions: str) -> Tensor:
    tensor = _float_tensor(value, name)
    if tensor.ndim != 2:
        raise ValueError(f"{name}: expected two dimensions {dimensions}, got shape {tuple(tensor.shape)}")
    return tensor


def _check_device(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected the device of {like_name} ({like.device}), got {tensor.device}")


def _check_length(items: Sequence[Any], name: str, like: Sequence[Any], like_name: str) -> None:
    if isinstance(items, (Tensor, np.ndarray)) or not isinstance(items, (list, tuple)):
        raise TypeError(f"{name}: expected a list as {like_name} is one, got {type(items).__name__}")
    if len(items) != len(like):
        raise ValueError(f"{name}: expected {len(like)} items as in {like_name}, got {len(items)}")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _numpy_like(value: Any) -> Callable[[Tensor], Any]:
    """Return what turns a result into the caller's kind of array."""
    return (lambda tensor: tensor.numpy()) if isinstance(value, np.ndarray) else (lambda tensor: tensor)


@overload
def rank_gaussian_filter(maps: _A, kernel_size: int = 3, *, backend: str | None = None) -> _A: ...
@overload
def rank_gaussian_filter(maps: Sequence[_A], kernel_size: int = 3, *, backend: str | None = None) -> list[_A]: ...
def rank_gaussian_filter(maps: Any, kernel_size: int = 3, *, backend: str | None = None) -> Any:
    r"""Filter maps by a Gaussian over ranks whose width is each window's coefficient of variation.

    In every ``k x k`` window (reflect padding), values sorted ascending :math:`v_0 .. v_{n-1}`, :math:`n = k^2`, mean
    :math:`\mu` and population standard deviation :math:`\sigma`:

    .. math:: \sum_r w_r v_r, \quad
              w_r \propto \exp\!\left(-\frac{(r - \lfloor n/2 \rfloor)^2}{2 (\sigma/\mu)^2}\right), \quad
              \textstyle\sum_r w_r = 1

    (Eq. 6 and 7 of the TAM paper, ICCV 2025). A calm window keeps its median, a noisy one is averaged over more ranks.

    Parameters
    ----------
    maps : Tensor or ndarray (..., H, W), or a list of them
        float32, float16, bfloat16 or float64; any strides; any device. A list may hold maps of different sizes and is
        one call.
    kernel_size : int
        k, odd, 1 to 15. 1 leaves finite values as they are.
    backend : "cpu", "cuda", "triton" or "reference", optional
        Who computes this call; by default what :func:`tam_fast.backend_info` says.

    Returns
    -------
    Tensor or ndarray (..., H, W), or a list of them
        Contiguous, same dtype and device as the input. A batch of zero maps gives an empty result.

    Raises
    ------
    TypeError
        If ``maps`` is no floating-point tensor or array, or ``kernel_size`` no integer.
    ValueError
        If H or W is 0, ``maps`` has fewer than two dimensions, ``kernel_size`` is even or not in 1..15, or ``backend``
        does not take tensors of the device.
    RuntimeError
        If ``backend`` cannot be used here.

    Notes
    -----
    A window with mean <= 0 gives 0; a constant window gives its value; a window that holds NaN or Inf gives NaN and
    leaves other windows untouched. Negative values are ordered by value. Each map is scaled by a power of two, so
    values from 1e-38 to 1e38 are equally accurate: against float64, relative to the map's maximum, 4e-7 on dense maps
    and 1.5e-6 down to 1 % of non-zero cells. Arithmetic is float64 for float64 maps and for the rare map whose range
    float32 cannot hold scaled, else float32. On the CPU the bits are the same for every instruction set, thread count
    and batch position, and the call runs on ``torch.get_num_threads()`` threads, without the GIL. On a GPU it is
    launched on the current stream and not waited for; it repeats bit for bit and is within 2e-6 of the map's maximum of
    the CPU's. Not differentiable: the result does not require grad.

    Examples
    --------
    >>> import torch, tam_fast
    >>> tam_fast.rank_gaussian_filter(torch.ones(2, 4, 4)).shape
    torch.Size([2, 4, 4])
    """
    size = _check_kernel_size(kernel_size)
    if _is_list(maps):
        tensors = [_check_maps(item, f"maps[{index}]") for index, item in enumerate(maps)]
        filtered = torch.ops.tam_fast.rank_gaussian_filter_batch.default(tensors, size, backend) if tensors else []
        return [_numpy_like(item)(result) for item, result in zip(maps, filtered, strict=True)]
    tensor = _check_maps(maps, "maps")
    if isinstance(maps, np.ndarray) and not torch.compiler.is_compiling():
        # Of what a call through torch brings, an array needs nothing.
        return selection.serving(selection.CPU, backend).rank_gaussian_filter([tensor], size)[0].numpy()
    return _numpy_like(maps)(torch.ops.tam_fast.rank_gaussian_filter.default(tensor, size, backend))


def _check_scores_inputs(hidden: Any, classifier: Tensor, token_ids: Any, suffix: str) -> tuple[Tensor, Tensor]:
    states = _check_matrix(hidden, f"hidden{suffix}", "(S, C)")
    if states.shape[1] != classifier.shape[1]:
        raise ValueError(
            f"hidden{suffix}: expected C = {classifier.shape[1]} channels as in classifier, "
            f"got shape {tuple(states.shape)}"
        )
    _check_device(states, f"hidden{suffix}", classifier, "classifier")
    return states, _index_tensor(token_ids, f"token_ids{suffix}", states.device)


def token_scores(hidden: Any, classifier: Any, token_ids: Any, *, backend: str | None = None) -> Any:
    r"""Score every position for every token: :math:`s_t(j) = \max(F_j \cdot w_t, 0)` (Eq. 1 of the TAM paper).

    Parameters
    ----------
    hidden : Tensor or ndarray (S, C), or a list of them
        Final hidden states F. float32, float16, bfloat16 or float64; any strides.
    classifier : Tensor or ndarray (V, C)
        The lm_head weight w, same device. Only the rows of ``token_ids`` are read.
    token_ids : Tensor, ndarray or list of int (T,), or a list of them
        Vocabulary indices; repeated ones are scored again.
    backend : str, optional
        Who computes this call (see :func:`rank_gaussian_filter`).

    Returns
    -------
    Tensor or ndarray (T, S) float32, or a list of them
        Kind and device of ``hidden``.

    Raises
    ------
    TypeError
        If a dtype or kind is not one of the above.
    ValueError
        If shapes or devices do not fit, a token id is not in 0..V-1, or ``backend`` does not take tensors of the
        device.
    RuntimeError
        If ``backend`` cannot be used here.

    Notes
    -----
    Products are accumulated in float32, on the CPU (16 partial sums, fused multiply-add) in an order that does not
    depend on the instruction set, the number of threads, T or S, so a token scored alone has the bits it has in a
    batch. On a GPU float16 and bfloat16 go through tensor cores; float32 does only with Triton, if TF32 is asked for
    (``torch.set_float32_matmul_precision``). NaN propagates. Token ids on a GPU are checked, which waits for it, except
    while a CUDA graph is captured: then an id that is no row gives NaN. Not differentiable.
    """
    weight = _check_matrix(classifier, "classifier", "(V, C)")
    if _is_list(hidden):
        _check_length(token_ids, "token_ids", hidden, "hidden")
        pairs = [
            _check_scores_inputs(states, weight, ids, f"[{index}]")
            for index, (states, ids) in enumerate(zip(hidden, token_ids, strict=True))
        ]
        if not pairs:
            return []
        scores = torch.ops.tam_fast.token_scores_batch.default(
            [p[0] for p in pairs], weight, [p[1] for p in pairs], backend
        )
        return [_numpy_like(states)(result) for states, result in zip(hidden, scores, strict=True)]
    states, ids = _check_scores_inputs(hidden, weight, token_ids, "")
    return _numpy_like(hidden)(torch.ops.tam_fast.token_scores.default(states, weight, ids, backend))


def least_squares_scale(target: Any, interference: Any, *, backend: str | None = None) -> Any:
    r"""Scale that brings the interference closest to the target: :math:`s = \langle A, E\rangle / \langle E, E\rangle`.

    The closed form of :math:`\arg\min_s \lVert A - s E \rVert^2` (Eq. 5 of the TAM paper).

    Parameters
    ----------
    target : Tensor or ndarray (..., N)
        Activation maps A. float32, float16, bfloat16 or float64.
    interference : Tensor or ndarray (..., N)
        Interference maps E; leading dimensions broadcast against those of ``target``.
    backend : str, optional
        Who computes this call (see :func:`rank_gaussian_filter`).

    Returns
    -------
    Tensor or ndarray (...,) float32
        0 where the interference is 0 everywhere (or N is 0).

    Raises
    ------
    TypeError, ValueError
        If a dtype is not floating point, or shapes or devices do not fit, or ``backend`` does not take tensors of the
        device.
    RuntimeError
        If ``backend`` cannot be used here.

    Notes
    -----
    Accumulated in float64 in a fixed order. NaN propagates. Not differentiable.
    """
    a, e = _float_tensor(target, "target"), _float_tensor(interference, "interference")
    _check_device(e, "interference", a, "target")
    for tensor, name in ((a, "target"), (e, "interference")):
        if tensor.ndim < 1:
            raise ValueError(f"{name}: expected at least one dimension (..., N), got a scalar")
    if a.shape[-1] != e.shape[-1]:
        raise ValueError(f"interference: expected N = {a.shape[-1]} as in target, got shape {tuple(e.shape)}")
    if a.shape != e.shape:
        try:
            a, e = torch.broadcast_tensors(a, e)
        except RuntimeError as error:
            raise ValueError(
                f"interference: expected a shape that broadcasts against target {tuple(a.shape)}, got {tuple(e.shape)}"
            ) from error
    return _numpy_like(target)(torch.ops.tam_fast.least_squares_scale.default(a, e, backend))


def _check_causal_inputs(activation: Any, context: Any, relevance: Any, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
    a = _check_matrix(activation, f"activation{suffix}", "(T, N)")
    c = _check_matrix(context, f"context{suffix}", "(K, N)")
    r = _check_matrix(relevance, f"relevance{suffix}", "(T, K)")
    for tensor, name in ((c, "context"), (r, "relevance")):
        _check_device(tensor, f"{name}{suffix}", a, f"activation{suffix}")
    if c.shape[1] != a.shape[1]:
        raise ValueError(
            f"context{suffix}: expected N = {a.shape[1]} positions as in activation, got shape {tuple(c.shape)}"
        )
    if r.shape != (a.shape[0], c.shape[0]):
        raise ValueError(
            f"relevance{suffix}: expected shape (T, K) = ({a.shape[0]}, {c.shape[0]}), got {tuple(r.shape)}"
        )
    return a, c, r


def estimated_causal_inference(activation: Any, context: Any, relevance: Any, *, backend: str | None = None) -> Any:
    r"""Remove from each token's activation what its context explains (Eq. 2, 4 and 5 of the TAM paper).

    .. math:: E_i = \frac{\sum_k r_i^k A_k}{\sum_k r_i^k + 10^{-8}}, \quad
              s_i = \frac{\langle A_i, E_i\rangle}{\langle E_i, E_i\rangle}, \quad C_i = \max(A_i - s_i E_i, 0)

    Parameters
    ----------
    activation : Tensor or ndarray (T, N), or a list of them
        Activation maps A_i of the target tokens.
    context : Tensor or ndarray (K, N), or a list of them
        Activation maps A_k of the context tokens.
    relevance : Tensor or ndarray (T, K), or a list of them
        Textual relevance r; 0 where a token is not in the target's context or is the target's own word.
    backend : str, optional
        Who computes this call (see :func:`rank_gaussian_filter`).

    Returns
    -------
    causal : Tensor or ndarray (T, N) float32, or a list of them
        Causal maps.
    scale : Tensor or ndarray (T,) float32, or a list of them
        0 where the context is empty or the interference 0.

    Raises
    ------
    TypeError, ValueError
        If a dtype is not floating point, or shapes or devices do not fit, or ``backend`` does not take tensors of the
        device.
    RuntimeError
        If ``backend`` cannot be used here.

    Notes
    -----
    E is accumulated in float32 (on the CPU in blocks of 64 context tokens), the scale in float64, in an order that
    depends on nothing else. A context map enters only where its relevance is not 0: a NaN there spreads to no other
    target. Not differentiable.
    """
    if _is_list(activation):
        _check_length(context, "context", activation, "activation")
        _check_length(relevance, "relevance", activation, "activation")
        triples = [
            _check_causal_inputs(a, c, r, f"[{index}]")
            for index, (a, c, r) in enumerate(zip(activation, context, relevance, strict=True))
        ]
        if not triples:
            return [], []
        causal, scale = torch.ops.tam_fast.estimated_causal_inference_batch.default(
            [t[0] for t in triples], [t[1] for t in triples], [t[2] for t in triples], backend
        )
        kinds = [_numpy_like(item) for item in activation]
        return (
            [kind(item) for kind, item in zip(kinds, causal, strict=True)],
            [kind(item) for kind, item in zip(kinds, scale, strict=True)],
        )
    a, c, r = _check_causal_inputs(activation, context, relevance, "")
    causal, scale = torch.ops.tam_fast.estimated_causal_inference.default(a, c, r, backend)
    kind = _numpy_like(activation)
    return kind(causal), kind(scale)
