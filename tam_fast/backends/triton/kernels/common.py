# mypy: ignore-errors
"""What the Triton kernels share: their registry, and how one launch serves many items.

A kernel takes addresses and sizes as 64-bit integers. Those of a single item are its arguments; for several, `table` is
the address of one row of int64 an item, whose first entry is the item's first program and the others are the arguments.
"""

import inspect

import triton
import triton.language as tl

KERNELS = {}
"""Every kernel that is launched, by name."""


def kernel(function):
    """Compile a function as a kernel whose run-time arguments never cause another compilation."""
    parameters = inspect.signature(function).parameters.items()
    varying = [name for name, parameter in parameters if parameter.annotation is not tl.constexpr]
    KERNELS[function.__name__] = triton.jit(function, do_not_specialize=varying)
    return KERNELS[function.__name__]


@triton.jit
def at(address, ELEMENT: tl.constexpr):
    """Pointer to elements of a type at an address."""
    return address.to(tl.int64).to(tl.pointer_type(ELEMENT))


@triton.jit
def item_of(table, items, program, WIDTH: tl.constexpr):
    """Return the place in the table of the item that a program belongs to: the last that begins at or before it."""
    low = program * 0
    high = low + items.to(tl.int32)
    while high - low > 1:
        middle = (low + high) // 2
        begins_before = tl.load(at(table, tl.int64) + middle.to(tl.int64) * WIDTH) <= program
        low = tl.where(begins_before, middle, low)
        high = tl.where(begins_before, high, middle)
    return low.to(tl.int64) * WIDTH


@triton.jit
def field(table, place, INDEX: tl.constexpr, given):
    """Return an argument: from the table if there is one."""
    return tl.load(at(table, tl.int64) + place + INDEX, mask=table != 0, other=given).to(tl.int64)


@triton.jit
def given_for(address, index):
    """Whether there is something at an address, for each index: the interpreter takes no mask made of a scalar."""
    return (address + index * 0) != 0


@triton.jit
def row_of(rows, index, live):
    """Row numbers by an int64 index; without one (address 0), the numbers themselves."""
    return tl.load(at(rows, tl.int64) + index, mask=live & given_for(rows, index), other=index)


@triton.jit
def is_finite(x):
    """Whether values are neither NaN nor Inf."""
    return tl.abs(x) < float("inf")


@triton.jit
def rectified(x):
    """max(x, 0) that keeps NaN."""
    return tl.where(x > 0, x, tl.where(x <= 0, 0.0, float("nan")))
