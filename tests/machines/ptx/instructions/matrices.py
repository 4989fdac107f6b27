"""What a warp does with matrices: loading them from shared memory, and tensor cores."""

from __future__ import annotations

from typing import Any

import numpy as np

from machines.ptx.floats import BELOW_FLOAT32, bfloat16_to_float32
from machines.ptx.instructions.decoders import opcode, unsupported
from machines.ptx.instructions.warps import by_warp
from machines.ptx.values import FLOAT16, FLOAT32, FLOAT64, INT64, UINT16, UINT32, Array, Step, flags

WORDS = np.arange(4)


def warps_of(s: Any) -> Array:
    """The warps that take part, as numbers in the batch."""
    return np.arange(s.size // 32) if s.mask is None else np.flatnonzero(s.mask.reshape(-1, 32)[:, 0])


@opcode("ldmatrix")
def load_matrix(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    count = next(int(x[1]) for x in modifiers if x in ("x1", "x2", "x4"))
    transposed = "trans" in modifiers
    unsupported({x for x in modifiers if "::" not in x} -
                {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "b16"})  # fmt: skip
    targets = operands[0] if isinstance(operands[0], list) else [operands[0]]
    slots = [d.destination(x, "b32") for x in targets]
    base, offset = d.address(operands[1], "shared")
    lane, key = np.arange(32), ("rows", count)

    def step(s: Any) -> None:
        warps = warps_of(s)
        lanes = s.plans.get(key) if s.mask is None else None
        if lanes is None:
            lanes = (warps[:, None] * 32 + np.arange(8 * count)).reshape(-1)
            if s.mask is None:
                s.plans[key] = lanes
        places = s.shared_places(s.addresses(base, offset, lanes), 16, lanes, "row")
        s.watch_reads(places, 16, lanes)
        rows = s.shared[4][(places >> 2)[:, None] + WORDS].reshape(len(warps), count, 32)
        if transposed:
            halves = rows.view(UINT16).reshape(len(warps), count, 8, 8)
            low, high = (halves[:, :, lane % 4 * 2 + part, lane // 4].astype(UINT32) for part in (0, 1))
            rows = low | high << np.uint32(16)
        for index, slot in enumerate(slots):
            s.put_warps(slot, rows[:, index], warps)

    return step


def fragments(shape: str, kind: str) -> tuple[int, int, Array, Array, Array]:
    """k, elements a register holds, and for A (m, k), B (k, n) and C (m, n) where in a warp's registers elements lie.

    A place is (lane * registers + register) * elements + element; layouts are those of the PTX ISA's chapter on mma.
    """
    known = {("m16n8k16", "f16"), ("m16n8k16", "bf16"), ("m16n8k8", "f16"), ("m16n8k8", "bf16"), ("m16n8k8", "tf32"),
             ("m16n8k4", "tf32")}  # fmt: skip
    if (shape, kind) not in known:
        raise NotImplementedError(f"mma {shape} of {kind}")
    k, packed = int(shape[shape.index("k") + 1 :]), 1 if kind == "tf32" else 2
    across = 4 * packed  # columns of A that the four lanes of a row hold in one register
    a, b, c = np.zeros((16, k), INT64), np.zeros((k, 8), INT64), np.zeros((16, 8), INT64)
    a_registers, b_registers = 2 * k // across, k // across
    for lane in range(32):
        group, member = divmod(lane, 4)
        for register in range(a_registers):
            for part in range(packed):
                column = member * packed + part + across * (register // 2)
                a[group + 8 * (register % 2), column] = (lane * a_registers + register) * packed + part
        for register in range(b_registers):
            for part in range(packed):
                row = member * packed + part + across * register
                b[row, group] = (lane * b_registers + register) * packed + part
        for register in range(4):
            c[group + 8 * (register // 2), 2 * member + register % 2] = lane * 4 + register
    return k, packed, a, b, c


def tensor_core(a: Array, b: Array, c: Array, group: int) -> Array:
    """a (warps, k, m, 1) times b (warps, k, 1, n) plus c (warps, m, n), all float64, as no tensor core is worse.

    Products are exact. Those of `group` steps and the accumulator are cut off towards zero at 2**-25 of the power of
    two in the largest one, and their sum at float32's last bit: Fasi, Higham, Mikaitis and Pranesh (2021), "Numerical
    behavior of NVIDIA tensor cores", found the A100 to keep two bits more than float32 while it adds.
    """
    if len(c) > 16:  # more would not stay in the caches
        parts = range(0, len(c), 16)
        return np.concatenate([tensor_core(a[i : i + 16], b[i : i + 16], c[i : i + 16], group) for i in parts])
    addends = np.empty((len(c), group + 1, *c.shape[1:]))
    for begin in range(0, a.shape[1], group):
        np.multiply(a[:, begin : begin + group], b[:, begin : begin + group], out=addends[:, :group])
        addends[:, group] = c
        exponent = np.abs(addends).max(1).view(INT64) >> 52
        endless = np.count_nonzero(exponent == 2047)
        if endless:
            unlimited = addends.sum(1)
        exponent = np.maximum(exponent, 100)
        addends *= ((2071 - exponent) << 52).view(FLOAT64)[:, None]
        np.trunc(addends, out=addends)
        total = addends.sum(1) * ((exponent - 25) << 52).view(FLOAT64)
        c = (total.view(INT64) & ~BELOW_FLOAT32).view(FLOAT64)
        if endless:
            c = np.where(exponent == 2047, unlimited, c)
    return c


@opcode("mma")
def multiply_matrices(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    sync, aligned, shape, *layout, d_type, a_type, b_type, c_type = modifiers
    if (sync, aligned, layout, d_type, c_type) != ("sync", "aligned", ["row", "col"], "f32", "f32") or a_type != b_type:
        raise NotImplementedError(f"mma {modifiers}")
    k, packed, a_places, b_places, c_places = fragments(shape, a_type)
    group = 4 if a_type == "tf32" else 8
    slots = [d.destination(x, "f32") for x in operands[0]]
    a, b = ([d.source(x, "b32") for x in operand] for operand in operands[1:3])
    c = [d.source(x, "f32") for x in operands[3]]
    counts = (len(a), len(b), len(c), len(slots))
    if counts != (a_places.size // (32 * packed), b_places.size // (32 * packed), 4, 4):
        raise NotImplementedError(f"mma {shape} of {a_type} with {counts} registers")
    back = np.argsort(c_places.reshape(-1))  # from the matrix to the registers of the lanes

    a_places, b_places = a_places.T.reshape(-1), b_places.reshape(-1)

    def words(s: Any, registers: list[int], warps: Array | None, dtype: np.dtype[Any]) -> Array:
        made = np.empty((s.size // 32 if warps is None else len(warps), 32, len(registers)), dtype)
        for index, register in enumerate(registers):
            value = by_warp(s, register, dtype)
            made[:, :, index] = value if warps is None else value[warps]
        return made.reshape(len(made), -1)

    def values(s: Any, registers: list[int], warps: Array | None, places: Array) -> Array:
        bits = words(s, registers, warps, UINT32)
        if a_type == "tf32":
            numbers = (bits & np.uint32(0xFFFFE000)).view(FLOAT32)
        else:
            numbers = bits.view(FLOAT16) if a_type == "f16" else bfloat16_to_float32(bits)
        return numbers.astype(FLOAT64).take(places, axis=1)

    def step(s: Any) -> None:
        warps = None if s.mask is None else warps_of(s)
        left = values(s, a, warps, a_places).reshape(-1, k, 16, 1)
        right = values(s, b, warps, b_places).reshape(-1, k, 1, 8)
        start = words(s, c, warps, FLOAT32).take(c_places.reshape(-1), axis=1).astype(FLOAT64)
        result = tensor_core(left, right, start.reshape(-1, 16, 8), group).astype(FLOAT32)
        if np.count_nonzero(result != result):
            result = np.where(np.isnan(result), np.uint32(0x7FFFFFFF).view(FLOAT32), result)
        flags.invalid = False
        lanes = np.ascontiguousarray(result.reshape(len(result), -1).take(back, axis=1).reshape(-1, 4).T)
        for index, slot in enumerate(slots):
            if warps is None:
                s.R[slot] = lanes[index]
            else:
                s.put_warps(slot, lanes[index].reshape(-1, 32), warps)

    return step
