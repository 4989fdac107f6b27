"""Memory of the PTX machine in every space, its bounds, and what it knows of torch's tensors."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from machines.ptx import Fault, Memory
from machines.ptx_kernels import INDEX, TYPES, bits_of, execute, faults, launch, module


def test_parameters_are_laid_out_and_read_through_registers() -> None:
    made = module(
        "mov.b64 %rd5, many; add.s64 %rd6, %rd5, 8; ld.param.u64 %rd1, [to]; ld.param.v2.u32 {%r1, %r2}, [%rd6+-8];"
        "ld.param.s8 %h1, [many+9]; cvt.s32.s16 %r3, %h1; ld.param.f32 %f1, [last];"
        "st.global.v2.b32 [%rd1], {%r1, %r2}; st.global.s32 [%rd1+8], %r3; st.global.f32 [%rd1+12], %f1;",
        ".param .u64 to, .param .u8 small, .param .align 8 .b8 many[12], .param .f32 last",
        ".maxntid 32, 1, 1",
    )
    kernel = made.kernels["kernel"]
    assert made.target == "sm_80"
    assert [(x.name, x.offset, x.size) for x in kernel.parameters] == [
        ("to", 0, 8), ("small", 8, 1), ("many", 16, 12), ("last", 28, 4)]  # fmt: skip
    assert (kernel.parameter_bytes, kernel.static_shared_bytes, kernel.max_threads) == (32, 0, 32)
    to = np.zeros(4, "u4")
    scalars = struct.pack("B7xIIbb2xf", 9, 11, 12, 0, -3, 2.5)
    launch(made, 1, 1, to, scalars=scalars)
    assert to.tolist() == [11, 12, 2**32 - 3, struct.unpack("I", struct.pack("f", 2.5))[0]]


@pytest.mark.parametrize("kind, count", [("u8", 4), ("u16", 2), ("u32", 4), ("u64", 2), ("f32", 2), ("u16", 4)])
def test_vectors_of_every_size(kind: str, count: int) -> None:
    size = np.dtype(TYPES[kind]).itemsize
    source = bits_of(kind, 64 * count)
    kinds = {1: "h", 2: "h", 4: "f" if kind == "f32" else "r", 8: "rd"}
    registers = ", ".join(f"%{kinds[size]}{10 + i}" for i in range(count))
    body = f"""
        .shared .align 16 .b8 block[{64 * count * size}];
        mov.u32 %r1, %tid.x; mul.lo.s32 %r2, %r1, {count * size}; cvt.u64.u32 %rd2, %r2;
        ld.param.u64 %rd1, [to]; ld.param.u64 %rd3, [from0]; add.s64 %rd1, %rd1, %rd2; add.s64 %rd3, %rd3, %rd2;
        ld.global.nc.v{count}.{kind} {{{registers}}}, [%rd3]; mov.u32 %r3, block; add.s32 %r3, %r3, %r2;
        st.shared.v{count}.{kind} [%r3], {{{registers}}}; cvt.u64.u32 %rd5, %r3; cvta.shared.u64 %rd6, %rd5;
        ld.v{count}.{kind} {{{registers}}}, [%rd6]; st.v{count}.{kind} [%rd1], {{{registers}}};
    """
    aligned = np.zeros(len(source) + 16, source.dtype)
    begin = -(aligned.ctypes.data) % 16 // size
    to = aligned[begin : begin + len(source)]
    inside = np.zeros_like(aligned)
    begin = -(inside.ctypes.data) % 16 // size
    inside[begin : begin + len(source)] = source
    launch(module(body, ".param .u64 to, .param .u64 from0"), 1, 64, to, inside[begin : begin + len(source)])
    np.testing.assert_array_equal(to.view("u1"), source.view("u1"))


def test_generic_addresses_of_several_spaces() -> None:
    body = (
        INDEX
        + """
        .shared .align 16 .b8 block[256]; .local .align 8 .b8 depot[8];
        mov.u32 %r5, block; shl.b32 %r6, %r1, 2; add.s32 %r5, %r5, %r6;
        cvt.u64.u32 %rd5, %r5; cvta.shared.u64 %rd5, %rd5;
        mov.u64 %rd6, depot; cvta.local.u64 %rd6, %rd6; rem.u32 %r7, %r1, 3; mov.u64 %rd7, %rd3;
        setp.eq.u32 %p1, %r7, 1; @%p1 mov.u64 %rd7, %rd5; setp.eq.u32 %p2, %r7, 2; @%p2 mov.u64 %rd7, %rd6;
        st.u32 [%rd7], %r4; ld.u32 %r8, [%rd7{0}]; @%p1 ld.shared.u32 %r8, [%r5]; st.global.u32 [%rd3], %r8;
    """
    )
    np.testing.assert_array_equal(execute(body.replace("{0}", ""), 3, 64), np.arange(192))
    with pytest.raises(Fault, match=r"block \(2, 0, 0\), thread \(63, 0, 0\): 4 bytes at .* outside memory"):
        execute(body.replace("{0}", "+4").replace("ld.u32", "@!%p1 ld.u32"), 3, 64)
    faults(r"thread \(7, 0, 0\): address 0x.* is in no space",
           "setp.eq.u32 %p1, %r1, 7; @%p1 add.s64 %rd3, %rd3, 0x1000000000000; st.u32 [%rd3], %r1;")  # fmt: skip


def test_local_memory_is_the_lanes_own() -> None:
    body = (
        INDEX
        + """
        .local .align 8 .b8 depot[64];
        mov.u64 %rd5, depot; cvta.local.u64 %rd6, %rd5; mul.lo.s32 %r5, %r4, 3; st.u32 [%rd6+8], %r5;
        bar.sync 0; ld.local.u32 %r6, [%rd5+8]; st.global.u32 [%rd3], %r6;
    """
    )
    np.testing.assert_array_equal(execute(body, 2, 64), np.arange(128) * 3)


def test_atomics_count_every_lane() -> None:
    body = """
        mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [to]; ld.param.u64 %rd2, [from0];
        atom.global.add.u32 %r2, [%rd2], 2; mul.wide.u32 %rd3, %r2, 2; add.s64 %rd1, %rd1, %rd3;
        st.global.u32 [%rd1], %r1;
        cvt.rn.f32.u32 %f1, %r1; red.global.add.f32 [%rd2+4], %f1; atom.global.max.s32 %r5, [%rd2+8], %r1;
        atom.global.cas.b32 %r6, [%rd2+12], 0, 99;
    """
    cells = np.zeros(4, "u4")
    got = execute(body, 2, 40, inputs=(cells,))
    assert sorted(got.tolist()) == sorted([*range(40), *range(40)])
    assert cells[0] == 160
    assert cells.view("f4")[1] == 2 * sum(range(40))
    assert cells[2:].tolist() == [39, 99]


def test_dynamic_shared_memory_follows_the_static() -> None:
    body = (
        INDEX
        + """
        .shared .align 8 .b8 own[20];
        mov.u32 %r5, dynamic; mov.u32 %r6, own; sub.s32 %r7, %r5, %r6; shl.b32 %r8, %r1, 2; add.s32 %r9, %r5, %r8;
        st.shared.u32 [%r9], %r7; ld.shared.u32 %r10, [%r9]; st.global.u32 [%rd3], %r10;
    """
    )
    declaration = ".extern .shared .align 16 .b8 dynamic[];"
    made = module(body, declarations=declaration)
    assert made.kernels["kernel"].static_shared_bytes == 32
    np.testing.assert_array_equal(execute(body, 1, 32, shared_bytes=128, declarations=declaration), np.full(32, 32))
    with pytest.raises(Fault, match="4 bytes at 156 of the 156 of shared memory"):
        execute(body, 1, 32, shared_bytes=124, declarations=declaration)


def test_global_memory_is_bounded_and_aligned() -> None:
    faults(r"thread \(0, 0, 0\): 4 bytes at .* outside memory", "st.global.u32 [%rd3+-4], %r1;")
    faults(r"thread \(63, 0, 0\).*outside memory", "ld.global.u32 %r5, [%rd3+4];")
    faults("is not a multiple of 4", "st.global.u32 [%rd3+2], %r1;")
    faults("is not a multiple of 8", "ld.global.v2.u32 {%r5, %r6}, [%rd3];")
    faults("outside memory", "mov.u64 %rd5, 0; ld.u32 %r6, [%rd5];")
    faults(
        r"block \(0, 0, 0\), thread \(33, 0, 0\).*outside",
        "setp.eq.u32 %p1, %r1, 33; mov.u64 %rd5, %rd3; @%p1 mov.u64 %rd5, 64; ld.global.u32 %r6, [%rd5];",
    )


def test_memory_records_the_tensors_of_torch() -> None:
    body = (
        INDEX
        + "ld.param.u64 %rd5, [from]; add.s64 %rd6, %rd5, %rd2; ld.global.u32 %r5, [%rd6]; st.global.u32 [%rd3], %r5;"
    )
    kernel = module(body, ".param .u64 to, .param .u64 from").kernels["kernel"]
    before = torch.arange(64, dtype=torch.int32)

    def copy(to: int, source: int, memory: Memory) -> None:
        kernel.launch(1, 64, struct.pack("QQ", to, source), memory=memory)

    with Memory.recording() as memory:
        source = before + 1
        to = torch.empty(64, dtype=torch.int32)
        copy(to.data_ptr(), source.data_ptr(), memory)
        assert torch.equal(to, source)
        copy(to.data_ptr(), before.data_ptr(), memory)
        address = source.data_ptr()
        del source
        with pytest.raises(Fault, match="outside memory"):
            copy(to.data_ptr(), address, memory)
    alone = Memory()
    alone.add_tensor(to[3:])
    copy(to.data_ptr(), to.data_ptr(), alone)


def test_memory_records_what_operators_in_python_make() -> None:
    library = torch.library.Library("ptx_machine_test", "DEF")
    library.define("scratch(Tensor x) -> int")
    kept = []

    def scratch(x: torch.Tensor) -> int:
        kept.append(torch.empty_like(x))
        return kept[-1].data_ptr()

    library.impl("scratch", scratch, "CPU")
    with Memory.recording() as memory:
        address = torch.ops.ptx_machine_test.scratch(torch.zeros(1000))
    memory.refresh()
    memory.check(np.array([address + 3996], "u8"), 4)
