"""What each PTX instruction does, on numpy arrays with one element for each lane: a module for each group of them.

A decoder turns the modifiers and operands of one instruction into a closure that takes the batch of lanes.
"""

from machines.ptx.instructions import arithmetic, choices, conversions, matrices, memory, warps  # noqa: F401 (register)
from machines.ptx.instructions.decoders import DECODERS

__all__ = ["DECODERS"]
