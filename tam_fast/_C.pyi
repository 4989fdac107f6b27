"""CPU kernels of tam_fast. Tensors are passed as addresses, sizes and strides in elements.

Every operator takes a list of items, one for each input of a ragged batch, and shares the work of all of them among
``threads`` threads; results do not depend on how many. The GIL is released. Addresses are trusted; all else that cannot
be right (negative sizes, an unknown dtype, sizes that do not fit together, rows out of range) raises ``ValueError``.

``RuntimeError`` is raised when ``TAM_FAST_ISA`` or :func:`set_isa` asks for an unknown instruction set or one that this
machine lacks.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

__version__: str

WITHOUT_CUDA: Final[str]
"""Why ``tam_fast._cuda`` was not built with it, '' if it was."""

F32: Final[int]
F16: Final[int]
BF16: Final[int]
F64: Final[int]

_Matrix: TypeAlias = Sequence[int]
"""(address, dtype, rows, columns, row stride, column stride)"""
_Index: TypeAlias = tuple[int, int, int] | None
"""(address, size, stride) of int64 values; None means 0, 1, 2, ..., or for lengths the full length"""

def isa() -> str:
    """Name of the instruction set that operators use: "serial", "avx2" or "avx512"."""

def last_isa() -> str:
    """Name given by the kernels that ran this thread's latest operator; "" before the first."""

def set_isa(name: str | None) -> None:
    """Force an instruction set for the process; None returns to ``TAM_FAST_ISA`` or the widest there is."""

def available_isas() -> list[str]:
    """Instruction sets that this machine can run, the widest last."""

def sorting_network(kernel_size: int) -> list[tuple[int, int]]:
    """Comparators (low, high) of the network that sorts a window of kernel_size**2 values, as the kernels execute it.

    Applied in order, each leaving the smaller value on wire ``low``, they leave the wires ascending. Columns, whose
    comparators the kernels share between windows, are listed once for every column.
    """

def rank_gaussian_filter(
    maps: Sequence[tuple[int, int, int, Sequence[int], Sequence[int]]],
    kernel_size: int,
    constant_window_nan: bool,
    threads: int,
) -> None:
    """Filter every item (input address, output address, dtype, sizes (..., H, W), strides) into a contiguous output."""

def token_scores(items: Sequence[tuple[_Matrix, _Index, int]], classifier: _Matrix, threads: int) -> None:
    """Score every item (hidden (S, C), token ids (T,), address of the float32 scores (T, S))."""

def least_squares_scale(
    items: Sequence[tuple[int, int, Sequence[int], int, int, Sequence[int], Sequence[int], int]], threads: int
) -> None:
    """Scale of every item.

    An item is (target address, dtype, strides, interference address, dtype, strides, sizes (..., N) of both, address of
    the float32 scales).
    """

def estimated_causal_inference(items: Sequence[tuple[_Matrix, _Matrix, _Matrix, int, int]], threads: int) -> None:
    """Causal maps of every item.

    An item is (activation (T, N), context (K, N), relevance (T, K), address of the float32 causal maps (T, N), of the
    float32 scales (T,)).
    """

def finish_maps(
    items: Sequence[
        tuple[
            _Matrix,
            _Index,
            _Index,
            _Matrix,
            _Matrix,
            _Index,
            Sequence[tuple[int, int]],
            int,
            int,
            int,
            int,
        ]
    ],
    kernel_size: int,
    constant_window_nan: bool,
    threads: int,
) -> None:
    """Finished maps of every item.

    An item is (scores (U, N), activation rows (T,), context rows (K,), relevance (T, K), text relevance (T, L), text
    lengths (T,), grids (H, W), addresses of: maps (T, N), text (T, L), scales (T,), all float32, and flat flags (T,),
    one byte each).
    """
