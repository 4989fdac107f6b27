"""Errors of kernels: what a lane may not do, and the same with its place in the program and the grid."""

from __future__ import annotations


class Fault(Exception):
    """What a kernel may not do; says which kernel, instruction, line of the PTX, block and thread."""


class LaneFault(Exception):
    """Something a lane may not do; position is that of the lane among the active ones."""

    def __init__(self, message: str, position: int = 0):
        super().__init__(message)
        self.position = position
