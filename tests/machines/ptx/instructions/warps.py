"""What lanes of a warp do together. The scheduler has made sure that whoever must be there is."""

from __future__ import annotations

from typing import Any

import numpy as np

from machines.ptx.faults import LaneFault
from machines.ptx.instructions.decoders import opcode
from machines.ptx.values import BOOL, INT64, TYPES, UINT32, Array, Step, first


@opcode("shfl")
def shuffle(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    mode = modifiers[1]
    if modifiers[0] != "sync" or mode not in ("bfly", "idx", "up", "down"):
        raise NotImplementedError(f"shuffle {modifiers}")
    targets = operands[0] if isinstance(operands[0], tuple) else (operands[0],)
    value, lane, clamp = d.source(operands[1], "b32"), d.source(operands[2], "u32"), d.source(operands[3], "u32")
    constant = d.integer(operands[2]) is not None and d.integer(operands[3]) is not None
    key = (mode, d.integer(operands[2]), d.integer(operands[3]))
    slots = [d.destination(x, kind) for x, kind in zip(targets, ("b32", "pred"), strict=False)]

    def plan(s: Any) -> tuple[Array, Array]:
        own, by, limits = s.lane_in_warp, s.R[lane].view(UINT32), s.R[clamp].view(UINT32)
        by, top, segment = (x.astype(INT64) for x in (by & 31, limits & 31, limits >> np.uint32(8) & np.uint32(31)))
        last, low = (own & segment) | (top & ~segment), own & segment
        other = {"bfly": own ^ by, "idx": low | (by & ~segment), "up": own - by, "down": own + by}[mode]
        inside = other >= last if mode == "up" else other <= last
        return np.arange(s.size) - own + np.where(inside, other, own), inside

    def step(s: Any) -> None:
        planned = s.plans.get(key) if constant else plan(s)
        if planned is None:
            planned = s.plans[key] = plan(s)
        origin, inside = planned
        if s.mask is not None:
            missing = ~s.mask[origin[s.mask]]
            if np.count_nonzero(missing):
                at = first(missing)
                raise LaneFault(f"reads lane {int(origin[s.lanes()[at]]) % 32}, which is not there", at)
        s.put(slots[0], s.R[value][origin])
        if len(slots) > 1:
            s.put(slots[1], inside)

    return step


def by_warp(s: Any, slot: int, dtype: np.dtype[Any]) -> Array:
    return s.R[slot].view(dtype).reshape(-1, 32)


def spread(values: Array) -> Array:
    """One value of each warp, for every lane."""
    return np.repeat(values, 32)


@opcode("redux")
def reduce_warp(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    sync, operation, kind = modifiers
    if sync != "sync":
        raise NotImplementedError("redux without sync")
    dtype, function = TYPES[kind], {"add": np.add, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and,
                                    "or": np.bitwise_or, "xor": np.bitwise_xor}[operation]  # fmt: skip
    slot, value, members = d.destination(operands[0], kind), d.source(operands[1], kind), d.source(operands[2], "u32")
    neutral = {"max": np.iinfo(dtype).min, "min": np.iinfo(dtype).max, "and": -1}.get(operation, 0)

    def step(s: Any) -> None:
        x = by_warp(s, value, dtype)
        named = by_warp(s, members, UINT32)
        if s.mask is not None or np.count_nonzero(named != np.uint32(0xFFFFFFFF)):
            active = np.ones(s.size, BOOL) if s.mask is None else s.mask
            bits = spread(s.named_by_warp(named, active))
            if np.count_nonzero((named.reshape(-1) != bits) & active):
                raise LaneFault("lanes of one warp name different lanes")
            member = (bits >> s.lane_in_warp.astype(UINT32)) & np.uint32(1)
            x = np.where((member == 1).reshape(-1, 32) & active.reshape(-1, 32), x, np.array(neutral).astype(dtype))
        s.put(slot, spread(function.reduce(x, axis=1).astype(dtype)))

    return step


@opcode("vote", "activemask", "elect")
def vote(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    if name == "activemask":
        slot = d.destination(operands[0], "b32")
        return lambda s: s.put(slot, spread(s.active_bits()))
    if name != "vote" or modifiers[0] != "sync":
        raise NotImplementedError(f"{name} {modifiers}")
    operation = modifiers[1]
    chosen, negated = d.predicate(operands[1])
    slot = d.destination(operands[0], modifiers[-1])

    def step(s: Any) -> None:
        active = s.active_bits()
        yes = s.active_bits(s.R[chosen] ^ negated) & active
        if operation == "ballot":
            result = spread(yes)
        else:
            result = spread({"any": yes != 0, "all": yes == active, "uni": (yes == 0) | (yes == active)}[operation])
        s.put(slot, result)

    return step
