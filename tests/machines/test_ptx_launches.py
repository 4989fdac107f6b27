"""Launches on the PTX machine: what is checked before one, when it is decoded, and what a fault says."""

from __future__ import annotations

import pytest

from machines.ptx import Fault, Memory
from machines.ptx_kernels import INDEX, execute, faults, module


def test_a_fault_says_where() -> None:
    with pytest.raises(Fault) as caught:
        execute("\n" + INDEX + "\nst.global.u32 [%rd3+256], %r1;", 2, 64)
    message = str(caught.value)
    assert message.startswith("kernel, line 14: st.global.u32 [%rd3+256], %r1; block (1, 0, 0), thread (0, 0, 0): ")
    assert "are outside memory: 512 bytes from the start of a block of 512" in message


def test_launches_are_checked() -> None:
    faults("compiled for at most 64 threads", "", block=96, directives=".maxntid 64, 1, 1")
    faults("compiled for", "", block=32, directives=".reqntid 64")
    faults("more than 1024 threads", "", block=1025)
    faults("of shared memory: no device has more", "", shared_bytes=227 * 1024 + 1)
    execute("", shared_bytes=227 * 1024)
    with pytest.raises(Fault, match="grid"):
        execute("", grid=(1, 65536, 1), size=1)
    with pytest.raises(Fault, match="7 bytes of parameters for 8"):
        module("").kernels["kernel"].launch(1, 1, bytes(7), memory=Memory())


def test_registers_are_written_before_they_are_read() -> None:
    faults("register %r20 is read and was never written", "add.s32 %r5, %r20, 1;")
    some = "setp.lt.u32 %p1, %r1, 40; @%p1 bra $x; mov.u32 %r20, 5; $x: {0} st.global.u32 [%rd3], %r20;"
    faults(r"thread \(0, 0, 0\): register %r20 is read", some.format(""))
    execute(INDEX + some.format("@%p1 mov.u32 %r20, 7;"), 1, 64)
    faults("register %r21 is read", "mov.u32 %r21, %r20; st.global.u32 [%rd3], %r21;")
    execute(INDEX + "mov.u32 %r21, %r20; mov.u32 %r21, 5; st.global.u32 [%rd3], %r21;", 1, 64)
    faults("register %p5 is read", "@%p5 bra $x; $x: ret;")


def test_what_is_unknown_is_named_when_decoded() -> None:
    for body, match in (("wibble.u32 %r1, %r2;", "line 9: wibble.u32 %r1, %r2: .*opcode wibble.u32"),
                        ("add.sat.s32 %r1, %r2, %r3;", "sat"), ("add.s32 %rd1, %rd2, %rd3;", "%rd2 has 64 bits"),
                        ("bra $nowhere;", "nowhere"), ("mov.u64 %rd1, thing;", "address of 'thing'")):  # fmt: skip
        with pytest.raises(NotImplementedError, match=match):
            execute(body)
