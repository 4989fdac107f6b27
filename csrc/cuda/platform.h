#pragma once

// What the kernels use of CUDA, and nothing else of it: with nvcc the real thing, with any C++ compiler and
// TAM_FAST_EMULATION the emulation, so that the same sources run and are tested without a GPU. Inline PTX is here only.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef TAM_FAST_EMULATION
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#define TAM_KERNEL __global__
#define TAM_DEVICE __device__ __forceinline__
#define TAM_UNROLL _Pragma("GCC unroll 64")
#define TAM_UNROLL_4 _Pragma("GCC unroll 4")
#ifdef __CUDACC__
#undef TAM_UNROLL
#undef TAM_UNROLL_4
#define TAM_UNROLL _Pragma("unroll")
#define TAM_UNROLL_4 _Pragma("unroll 4")
#endif

namespace tam::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kWholeWarp = 0xffffffffu;
inline constexpr std::size_t kSharedBytesWithoutAsking = 48 * 1024;
inline constexpr std::size_t kLargestSharedBytes = 227 * 1024;  // sm_90 and sm_100; sm_80 has 163 KB, sm_86 99 KB

TAM_DEVICE std::uint32_t float_as_bits(float x) {
    return __float_as_uint(x);
}

TAM_DEVICE float bits_as_float(std::uint32_t x) {
    return __uint_as_float(x);
}

#ifdef TAM_FAST_EMULATION

// The dynamic shared memory of the block, 16-byte aligned. It holds garbage at first.
TAM_DEVICE unsigned char* shared_memory() {
    return emulation::shared_memory();
}

TAM_DEVICE float reciprocal_approximate(float x) {
    return emulation::reciprocal_approximate(x);
}

TAM_DEVICE float exp2_approximate(float x) {
    return emulation::exp2_approximate(x);
}

template <int Size>
TAM_DEVICE void copy_async(void* shared, const void* global, int bytes) {
    static_assert(Size == 4 || Size == 8 || Size == 16);
    emulation::copy_async(shared, global, Size, bytes);
}

TAM_DEVICE void copy_async_commit() {
    emulation::copy_async_commit();
}

template <int Pending>
TAM_DEVICE void copy_async_wait() {
    emulation::copy_async_wait(Pending);
}

TAM_DEVICE void load_matrix_x4(std::uint32_t (&r)[4], const void* shared) {
    emulation::load_matrix_x4(r, shared);
}

template <class Half>
TAM_DEVICE void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    emulation::mma_m16n8k16<Half>(d, a, b);
}

// A small device, so that small tests take the ways of large work as well.
inline int multiprocessors() {
    return 2;
}

inline std::size_t largest_shared_bytes() {
    return kLargestSharedBytes;
}

template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
                   const std::enable_if_t<true, Params>&... arguments) {
    const auto body = [&] { kernel(arguments...); };
    using Body = decltype(body);
    return emulation::run(
        grid, block, shared_bytes, [](const void* context) { (*static_cast<const Body*>(context))(); }, &body);
}

#else

TAM_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
    return dynamic_shared_memory;
}

// 1 / x within an ulp; denormals count as 0.
TAM_DEVICE float reciprocal_approximate(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// 2^x within 2 ulp; denormals count as 0.
TAM_DEVICE float exp2_approximate(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// Copies `bytes` (<= Size) to shared memory asynchronously and fills the rest of Size with zeros.
template <int Size>
TAM_DEVICE void copy_async(void* shared, const void* global, int bytes) {
    static_assert(Size == 4 || Size == 8 || Size == 16);
    const std::uint32_t to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
    if constexpr (Size == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(global), "r"(bytes), "n"(Size)
                     : "memory");
    }
}

TAM_DEVICE void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most `Pending` of the thread's latest groups of copies are under way.
template <int Pending>
TAM_DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane i passes the address of row i % 8 of matrix i / 8.
TAM_DEVICE void load_matrix_x4(std::uint32_t (&r)[4], const void* shared) {
    const std::uint32_t from = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// d (16 x 8, float32) += a (16 x 16, row-major) b (16 x 8, column-major), spread over the warp as PTX prescribes.
template <class Half>
TAM_DEVICE void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

template <>
TAM_DEVICE void mma_m16n8k16<__half>(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
TAM_DEVICE void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

inline int attribute_of_device(cudaDeviceAttr attribute, int otherwise) {
    int device = 0;
    int value = 0;
    const bool known =
        cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
    return known ? value : otherwise;
}

// Of the current device.
inline int multiprocessors() {
    return attribute_of_device(cudaDevAttrMultiProcessorCount, 1);
}

// That a block of the current device can have.
inline std::size_t largest_shared_bytes() {
    return static_cast<std::size_t>(
        attribute_of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin, static_cast<int>(kSharedBytesWithoutAsking)));
}

// Enqueues a kernel. The result tells of this launch alone, not of what other work on the device left behind.
template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   const std::enable_if_t<true, Params>&... arguments) {
    const void* const function = reinterpret_cast<const void*>(kernel);
    cudaError_t error = cudaSuccess;
    if (shared_bytes > kSharedBytesWithoutAsking) {
        // The most there is, not what this launch takes: the attribute is the function's, and another thread may be about
        // to launch it with more.
        error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(largest_shared_bytes()));
    }
    if (error == cudaSuccess) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))..., nullptr};
        error = cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
    }
    if (error != cudaSuccess) {
        static_cast<void>(cudaGetLastError());  // it is reported here, and to nobody who asks later
    }
    return error;
}

#endif

}  // namespace tam::cuda

namespace tam::cuda {

// Of the current device; work is divided by it. The emulation says what an H100 has, so that it divides alike.
inline int multiprocessor_count() {
    int count = 132;
#ifndef TAM_FAST_EMULATION
    int device = 0;
    if (cudaGetDevice(&device) == cudaSuccess) {
        static_cast<void>(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    }
#endif
    return count;
}

}  // namespace tam::cuda
