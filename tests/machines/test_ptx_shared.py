"""Shared memory of the PTX machine: exchanged at barriers, copied to asynchronously, and every race a fault."""

from __future__ import annotations

import numpy as np
import pytest

from machines.ptx import Fault
from machines.ptx_kernels import INDEX, SHOW, aligned, execute, faults

REVERSE = """
    .shared .align 16 .b8 block[512];
    shl.b32 %r5, %r1, 2; mov.u32 %r6, block; add.s32 %r7, %r6, %r5; st.shared.u32 [%r7], %r4;
    bar.sync 0;
    mov.u32 %r8, 508; sub.s32 %r9, %r8, %r5; add.s32 %r10, %r6, %r9; ld.shared.u32 %r11, [%r10];
    st.global.u32 [%rd3], %r11;
"""


def test_barriers_exchange_shared_memory() -> None:
    index = np.arange(40 * 128).reshape(40, 128)
    np.testing.assert_array_equal(execute(INDEX + REVERSE, 40, 128), index[:, ::-1].reshape(-1))


def test_shared_memory_is_bounded_aligned_and_written_before_it_is_read() -> None:
    start = ".shared .align 16 .b8 block[256]; mov.u32 %r5, block; shl.b32 %r6, %r1, 2; add.s32 %r7, %r5, %r6;"
    faults("4 bytes at 256 of the 256 of shared memory", start + "st.shared.u32 [%r7+4], %r1;")
    faults("4 bytes at -4 of the 256", start + "st.shared.u32 [%r7+-4], %r1;")
    faults("is not a multiple of 4", start + "st.shared.u32 [%r7+1], %r1;")
    faults(
        "reads shared memory at 4, but it was never written",
        start + "setp.eq.u32 %p1, %r1, 1; @!%p1 st.shared.u32 [%r7], %r1; bar.sync 0; ld.shared.u32 %r8, [%r7];",
    )
    faults("reads shared memory at 2, but it was never written",
           start + "mov.u16 %h1, 3; st.shared.u16 [%r7], %h1; ld.shared.u32 %r8, [%r7];")  # fmt: skip
    faults("row .* is not a multiple of 16",
           start + "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r7];", block=32)  # fmt: skip


def test_two_warps_may_not_touch_shared_memory_without_a_barrier() -> None:
    faults("race: read of shared memory at 508, which warp 3 wrote since the last barrier",
           REVERSE.replace("bar.sync 0;", ""), block=128)  # fmt: skip
    again = REVERSE + "{0} st.shared.u32 [%r7], %r1;"
    faults("race: write of shared memory at 0, which warp 3 read since", again.replace("{0}", ""), block=128)
    execute(INDEX + again.replace("{0}", "bar.sync 0;"), 2, 128)
    both = ".shared .align 16 .b8 block[256]; mov.u32 %r5, block; and.b32 %r6, %r1, 31; add.s32 %r5, %r5, %r6;"
    faults(
        "race: two warps write different values to shared memory at 0",
        both + "cvt.u16.u32 %h1, %r1; st.shared.u8 [%r5], %h1;",
    )
    one = ".shared .align 4 .b8 cell[4]; setp.eq.u32 %p1, %r1, 0; mov.u32 %r5, 1;"
    one += "@%p1 st.shared.u32 [cell], %r5; bar.sync 0;"
    read = one + "ld.shared.u32 %r6, [cell]; setp.eq.u32 %p2, %r1, {0}; {1} @%p2 st.shared.u32 [cell], %r5;"
    faults("race: write of shared memory at 0, which several warps read", read.format(40, ""))
    execute(INDEX + read.format(40, "bar.sync 0;"), 1, 64)


def test_two_warps_may_write_the_same() -> None:
    start = """
        .shared .align 16 .b8 block[512]; mov.u32 %r5, block; and.b32 %r6, %r1, 31; shl.b32 %r7, %r6, 4;
        add.s32 %r5, %r5, %r7; {0}
    """
    for store in ("st.shared.u32 [%r5+4], %r6;", "st.shared.v4.u32 [%r5], {%r7, %r6, %r6, %r7};"):
        body = INDEX + start.replace("{0}", store)
        np.testing.assert_array_equal(execute(body + "bar.sync 0;" + SHOW.format("%r5+4"), 3, 64), np.arange(192) % 32)
        faults("race: read of shared memory at 4, which several warps wrote", body + SHOW.format("%r5+4"))
        later = body + "setp.eq.u32 %p1, %r1, 35; @%p1 st.shared.u32 [%r5+4], {0}; bar.sync 0;" + SHOW.format("%r5+4")
        execute(later.replace("{0}", "%r6"), 1, 64)
        faults("race: write of shared memory at 52, which several warps wrote", later.replace("{0}", "%r7"))


def test_neighbouring_bytes_of_two_warps_are_no_race() -> None:
    body = (
        INDEX
        + """
        .shared .align 16 .b8 block[64]; mov.u32 %r5, block; and.b32 %r6, %r1, 31; shl.b32 %r6, %r6, 1;
        shr.u32 %r7, %r1, 5; add.s32 %r6, %r6, %r7; add.s32 %r6, %r5, %r6; cvt.u16.u32 %h1, %r1;
        st.shared.u8 [%r6], %h1; ld.shared.u8 %h2, [%r6]; bar.sync 0; add.s32 %r8, %r5, %r1; ld.shared.u8 %h2, [%r8];
        cvt.u32.u16 %r9, %h2; st.global.u32 [%rd3], %r9;
    """
    )
    np.testing.assert_array_equal(execute(body, 2, 64), np.tile(np.arange(64).reshape(2, 32).T.reshape(-1), 2))


COPY = """
    .shared .align 16 .b8 block[1024];
    ld.param.u64 %rd5, [from0]; mul.wide.u32 %rd6, %r1, 16; add.s64 %rd7, %rd5, %rd6;
    mov.u32 %r5, block; shl.b32 %r6, %r1, 4; add.s32 %r7, %r5, %r6; xor.b32 %r8, %r6, 512; add.s32 %r8, %r5, %r8;
"""


def copy_case(body: str, **options) -> np.ndarray:
    return execute(INDEX + COPY + body, 1, 64, inputs=(aligned(np.arange(256, dtype="u4")),), **options)


def test_copies_arrive_after_their_wait_and_a_barrier() -> None:
    body = "cp.async.cg.shared.global [%r7], [%rd7], 16; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;"
    np.testing.assert_array_equal(copy_case(body + SHOW.format("%r8")), (np.arange(64) ^ 32) * 4)
    body = "cp.async.ca.shared.global [%r7], [%rd7], 8; cp.async.wait_all;"
    np.testing.assert_array_equal(copy_case(body + SHOW.format("%r7+4")), np.arange(64) * 4 + 1)


def test_copies_of_fewer_bytes_are_filled_with_zeros() -> None:
    body = """
        and.b32 %r9, %r1, 15; cp.async.cg.shared.global [%r7], [%rd7], 16, %r9; cp.async.commit_group;
        cp.async.wait_group 0; ld.shared.u32 %r9, [%r7+4]; st.global.u32 [%rd3], %r9;
    """
    whole = (np.arange(64) * 4 + 1).astype("u4").view("u1").reshape(64, 4)
    whole = np.where(np.arange(4, 8) < (np.arange(64) % 16)[:, None], whole, 0).astype("u1")
    np.testing.assert_array_equal(copy_case(body), whole.view("u4").reshape(-1))


def test_groups_of_copies_are_waited_for_in_order() -> None:
    body = """
        cp.async.ca.shared.global [%r7], [%rd7], 4; cp.async.commit_group;
        cp.async.ca.shared.global [%r7+4], [%rd7+4], 4; cp.async.commit_group; cp.async.wait_group 1;
    """
    np.testing.assert_array_equal(copy_case(body + SHOW.format("%r7")), np.arange(64) * 4)
    with pytest.raises(Fault, match="a copy to it is in flight"):
        copy_case(body + SHOW.format("%r7+4"))


def test_copies_in_flight_may_not_be_touched() -> None:
    start = "cp.async.cg.shared.global [%r7], [%rd7], 16;"
    for body, match in (
        (start + SHOW.format("%r7"), "a copy to it is in flight"),
        (start + "cp.async.wait_group 0;" + SHOW.format("%r7"), "a copy to it is in flight"),
        (start + "bar.sync 0;" + SHOW.format("%r8"), "a copy to it is in flight"),
        (start + "cp.async.wait_all;" + SHOW.format("%r8"), "race: read"),
        (start + "bar.sync 0; cp.async.wait_all;" + SHOW.format("%r8"), "race: read"),
        (start + "st.shared.u32 [%r8], %r1;", "race: write"),
        (start + "st.shared.u32 [%r7], %r1; cp.async.wait_all;", "arrives over what was written since"),
        (start.replace("[%r7]", "[%r7+4]"), "destination .* is not a multiple of 16"),
        (start.replace("[%rd7]", "[%rd7+4]"), "source .* is not a multiple of 16"),
        (start.replace("[%rd7]", "[%rd7+1024]"), "outside memory"),
        (start.replace("16;", "16, 17;"), "copies more than 16 bytes"),
    ):
        with pytest.raises(Fault, match=match):
            copy_case(body)
    copy_case(start.replace("[%rd7], 16;", "[%rd7+1024], 16, 0;"))
