#pragma once

// CUDA as far as platform.h and the kernels need it, in plain C++: every CUDA thread is a fiber on the calling thread.
// Fibers of a block take turns in a random order and switch where threads may wait for each other, so that a missing
// barrier shows as a wrong result. What CUDA leaves undefined is an error here: barriers that not all threads of the block
// reach, or reach at different places, and warp operations whose lanes differ. Blocks run one after another.

#include <math.h>
#include <stdlib.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tam_fast/cuda/runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// ------------------------------------------------------------------------------------------------------------- runtime

struct dim3 {
    unsigned x;
    unsigned y;
    unsigned z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using uint3 = dim3;

namespace tam::cuda::emulation {

using Body = void (*)(const void* context);

// Runs all blocks of a kernel at once. An error's text is cudaGetErrorString's until the calling thread's next launch.
cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, Body body, const void* context);

// The order in which blocks and fibers take turns follows from the seed alone.
void set_seed(std::uint64_t seed);
// How many kernels this process has launched.
std::int64_t launches();

struct Position {
    uint3 thread;
    uint3 block;
    dim3 block_dim;
    dim3 grid_dim;
};
const Position& position();
unsigned char* shared_memory();

// Where in the source threads met, to tell apart meetings that CUDA would not take for one.
struct Place {
    const char* file;
    int line;
};

// Waits for all threads of the block; returns how many of them passed a nonzero predicate.
int block_barrier(int predicate, const char* name, Place place);

// Waits for all lanes of `mask`, all of which must come with the same name, mask and size. The last one calls
// work(lanes, mask): the data of every lane, where those outside the mask are null. Data are at most 64 bytes.
using WarpWork = void (*)(unsigned char* const* lanes, unsigned mask);
void warp_meeting(unsigned mask, const char* name, void* data, std::size_t size, WarpWork work, Place place);

float reciprocal_approximate(float x);
float exp2_approximate(float x);

void copy_async(void* shared, const void* global, int size, int bytes);
void copy_async_commit();
void copy_async_wait(int pending);
void load_matrix_x4(std::uint32_t (&r)[4], const void* shared);

float float_from_half(std::uint16_t bits);
std::uint16_t half_from_float(float value);

}  // namespace tam::cuda::emulation

#define threadIdx (::tam::cuda::emulation::position().thread)
#define blockIdx (::tam::cuda::emulation::position().block)
#define blockDim (::tam::cuda::emulation::position().block_dim)
#define gridDim (::tam::cuda::emulation::position().grid_dim)

#define TAM_PLACE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define TAM_PLACE (::tam::cuda::emulation::Place{file, line})

// --------------------------------------------------------------------------------------------------------- small types

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(4) ushort2 {
    unsigned short x, y;
};
struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};
struct alignas(4) uchar4 {
    unsigned char x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline int2 make_int2(int x, int y) {
    return {x, y};
}
inline int4 make_int4(int x, int y, int z, int w) {
    return {x, y, z, w};
}
inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
    return {x, y, z, w};
}
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) {
    return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
inline double2 make_double2(double x, double y) {
    return {x, y};
}

// ----------------------------------------------------------------------------------------------------------- arithmetic

template <class To, class From>
inline To emulated_bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<From>);
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

inline unsigned __float_as_uint(float x) {
    return emulated_bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
    return emulated_bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
    return emulated_bit_cast<float>(x);
}
inline float __int_as_float(int x) {
    return emulated_bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
    return emulated_bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
    return emulated_bit_cast<double>(x);
}
inline int __clz(int x) {
    return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7u) * 8 & 0xffu) << 8 * i;
    }
    return result;
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline double __dadd_rn(double a, double b) {
    return a + b;
}
inline double __dmul_rn(double a, double b) {
    return a * b;
}
inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}
inline double __ddiv_rn(double a, double b) {
    return a / b;
}
inline float __double2float_rn(double x) {
    return static_cast<float>(x);
}

template <class T>
inline std::enable_if_t<std::is_arithmetic_v<T>, T> min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline std::enable_if_t<std::is_arithmetic_v<T>, T> max(T a, T b) {
    return a < b ? b : a;
}

// ---------------------------------------------------------------------------------------------------------- half types

struct alignas(2) __half {
    std::uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
struct alignas(2) __nv_bfloat16 {
    std::uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float __half2float(__half x) {
    return tam::cuda::emulation::float_from_half(x.bits);
}
inline __half __float2half_rn(float x) {
    return {tam::cuda::emulation::half_from_float(x)};
}
inline float __bfloat162float(__nv_bfloat16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const unsigned bits = __float_as_uint(x);
    if (x != x) {
        return {0x7fff};
    }
    return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
inline float2 __half22float2(__half2 x) {
    return {__half2float(x.x), __half2float(x.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
    return {__float2half_rn(x), __float2half_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 x) {
    return {__bfloat162float(x.x), __bfloat162float(x.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float __low2float(__half2 x) {
    return __half2float(x.x);
}
inline float __high2float(__half2 x) {
    return __half2float(x.y);
}
inline float __low2float(__nv_bfloat162 x) {
    return __bfloat162float(x.x);
}
inline float __high2float(__nv_bfloat162 x) {
    return __bfloat162float(x.y);
}

// Of a number and a NaN the number, and -0 below 0, like the device's.
inline float emulated_smaller(float a, float b) {
    return a != a ? b : b != b ? a : a == b ? (signbit(a) ? a : b) : (a < b ? a : b);
}
inline float emulated_larger(float a, float b) {
    return a != a ? b : b != b ? a : a == b ? (signbit(a) ? b : a) : (a < b ? b : a);
}
inline __half2 __hmin2(__half2 a, __half2 b) {
    return __floats2half2_rn(emulated_smaller(__low2float(a), __low2float(b)),
                             emulated_smaller(__high2float(a), __high2float(b)));
}
inline __half2 __hmax2(__half2 a, __half2 b) {
    return __floats2half2_rn(emulated_larger(__low2float(a), __low2float(b)),
                             emulated_larger(__high2float(a), __high2float(b)));
}
inline __nv_bfloat162 __hmin2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __floats2bfloat162_rn(emulated_smaller(__low2float(a), __low2float(b)),
                                 emulated_smaller(__high2float(a), __high2float(b)));
}
inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __floats2bfloat162_rn(emulated_larger(__low2float(a), __low2float(b)),
                                 emulated_larger(__high2float(a), __high2float(b)));
}

// -------------------------------------------------------------------------------------------------------------- memory

template <class T>
inline T __ldg(const T* from) {
    return *from;
}
template <class T>
inline T __ldcs(const T* from) {
    return *from;
}
template <class T>
inline T __ldcg(const T* from) {
    return *from;
}
template <class T>
inline void __stcs(T* to, T value) {
    *to = value;
}
template <class T>
inline void __stcg(T* to, T value) {
    *to = value;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
inline T emulated_exchange(T* at, T value) {
    const T before = *at;
    *at = value;
    return before;
}
template <class T>
inline T atomicAdd(T* at, T value) {
    return emulated_exchange(at, static_cast<T>(*at + value));
}
template <class T>
inline T atomicMax(T* at, T value) {
    return emulated_exchange(at, max(*at, value));
}
template <class T>
inline T atomicMin(T* at, T value) {
    return emulated_exchange(at, min(*at, value));
}
template <class T>
inline T atomicOr(T* at, T value) {
    return emulated_exchange(at, static_cast<T>(*at | value));
}
template <class T>
inline T atomicExch(T* at, T value) {
    return emulated_exchange(at, value);
}

// ------------------------------------------------------------------------------------------------ blocks and warps meet

inline void __syncthreads(TAM_PLACE_PARAMETERS) {
    tam::cuda::emulation::block_barrier(0, "__syncthreads", TAM_PLACE);
}
inline int __syncthreads_or(int predicate, TAM_PLACE_PARAMETERS) {
    return tam::cuda::emulation::block_barrier(predicate, "__syncthreads_or", TAM_PLACE) != 0;
}
inline int __syncthreads_and(int predicate, TAM_PLACE_PARAMETERS) {
    return tam::cuda::emulation::block_barrier(predicate == 0, "__syncthreads_and", TAM_PLACE) == 0;
}
inline int __syncthreads_count(int predicate, TAM_PLACE_PARAMETERS) {
    return tam::cuda::emulation::block_barrier(predicate, "__syncthreads_count", TAM_PLACE);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, TAM_PLACE_PARAMETERS) {
    unsigned char none = 0;
    tam::cuda::emulation::warp_meeting(mask, "__syncwarp", &none, 1, [](unsigned char* const*, unsigned) {}, TAM_PLACE);
}

// A lane's value and which lane's value it asks for; a lane outside the mask has none, which is an error.
template <class T>
struct EmulatedShuffle {
    T value;
    int source;

    static void work(unsigned char* const* lanes, unsigned mask) {
        T values[32];
        for (int lane = 0; lane < 32; ++lane) {
            if ((mask >> lane & 1u) != 0) {
                std::memcpy(&values[lane], lanes[lane], sizeof(T));
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            if ((mask >> lane & 1u) != 0) {
                EmulatedShuffle shuffle;
                std::memcpy(&shuffle, lanes[lane], sizeof shuffle);
                const bool readable = (mask >> shuffle.source & 1u) != 0;
                std::memset(&shuffle.value, 0xff, sizeof(T));  // garbage, as CUDA says
                shuffle.value = readable ? values[shuffle.source] : shuffle.value;
                std::memcpy(lanes[lane], &shuffle, sizeof shuffle);
            }
        }
    }
};

inline int emulated_lane() {
    const auto& at = tam::cuda::emulation::position();
    return static_cast<int>((at.thread.x + at.block_dim.x * (at.thread.y + at.block_dim.y * at.thread.z)) % 32);
}

template <class T>
inline T emulated_shuffle(unsigned mask, T value, int source, const char* name, tam::cuda::emulation::Place place) {
    EmulatedShuffle<T> shuffle{value, source};
    tam::cuda::emulation::warp_meeting(mask, name, &shuffle, sizeof shuffle, &EmulatedShuffle<T>::work, place);
    return shuffle.value;
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, TAM_PLACE_PARAMETERS) {
    const int first = emulated_lane() / width * width;
    return emulated_shuffle(mask, value, first + (source & (width - 1)), "__shfl_sync", TAM_PLACE);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, TAM_PLACE_PARAMETERS) {
    const int lane = emulated_lane();
    const int source = lane ^ lanes;
    return emulated_shuffle(mask, value, source / width <= lane / width ? source : lane, "__shfl_xor_sync", TAM_PLACE);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, TAM_PLACE_PARAMETERS) {
    const int lane = emulated_lane();
    const int source = lane - static_cast<int>(delta);
    return emulated_shuffle(mask, value, source >= lane / width * width ? source : lane, "__shfl_up_sync", TAM_PLACE);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, TAM_PLACE_PARAMETERS) {
    const int lane = emulated_lane();
    const int source = lane + static_cast<int>(delta);
    return emulated_shuffle(mask, value, source < (lane / width + 1) * width ? source : lane, "__shfl_down_sync", TAM_PLACE);
}

struct EmulatedMax {
    template <class T>
    T operator()(T a, T b) const {
        return max(a, b);
    }
};
struct EmulatedMin {
    template <class T>
    T operator()(T a, T b) const {
        return min(a, b);
    }
};
struct EmulatedAdd {
    template <class T>
    T operator()(T a, T b) const {
        return static_cast<T>(a + b);
    }
};
struct EmulatedOr {
    template <class T>
    T operator()(T a, T b) const {
        return static_cast<T>(a | b);
    }
};

// All lanes of the mask get Combine of all their values.
template <class Combine, class T>
inline T emulated_reduction(unsigned mask, T value, const char* name, tam::cuda::emulation::Place place) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4);
    tam::cuda::emulation::warp_meeting(
        mask, name, &value, sizeof value,
        [](unsigned char* const* lanes, unsigned among) {
            bool first = true;
            T result{};
            for (int lane = 0; lane < 32; ++lane) {
                if ((among >> lane & 1u) != 0) {
                    T one;
                    std::memcpy(&one, lanes[lane], sizeof one);
                    result = first ? one : Combine{}(result, one);
                    first = false;
                }
            }
            for (int lane = 0; lane < 32; ++lane) {
                if ((among >> lane & 1u) != 0) {
                    std::memcpy(lanes[lane], &result, sizeof result);
                }
            }
        },
        place);
    return value;
}

template <class T>
inline T __reduce_max_sync(unsigned mask, T value, TAM_PLACE_PARAMETERS) {
    return emulated_reduction<EmulatedMax>(mask, value, "__reduce_max_sync", TAM_PLACE);
}
template <class T>
inline T __reduce_min_sync(unsigned mask, T value, TAM_PLACE_PARAMETERS) {
    return emulated_reduction<EmulatedMin>(mask, value, "__reduce_min_sync", TAM_PLACE);
}
template <class T>
inline T __reduce_add_sync(unsigned mask, T value, TAM_PLACE_PARAMETERS) {
    return emulated_reduction<EmulatedAdd>(mask, value, "__reduce_add_sync", TAM_PLACE);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, TAM_PLACE_PARAMETERS) {
    return emulated_reduction<EmulatedOr>(mask, value, "__reduce_or_sync", TAM_PLACE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, TAM_PLACE_PARAMETERS) {
    const unsigned own = predicate != 0 ? 1u << emulated_lane() : 0u;
    return emulated_reduction<EmulatedOr>(mask, own, "__ballot_sync", TAM_PLACE);
}
inline int __any_sync(unsigned mask, int predicate, TAM_PLACE_PARAMETERS) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, TAM_PLACE_PARAMETERS) {
    return __ballot_sync(mask, predicate == 0, file, line) == 0;
}

namespace tam::cuda::emulation {

// Registers of one lane in and out of a tensor core.
struct MatrixRegisters {
    std::uint32_t a[4];
    std::uint32_t b[2];
    float d[4];
};

template <class Half>
inline float float_of(std::uint16_t bits) {
    if constexpr (std::is_same_v<Half, __half>) {
        return __half2float({bits});
    } else {
        static_assert(std::is_same_v<Half, __nv_bfloat16>);
        return __bfloat162float({bits});
    }
}

// Tensor cores do not round. Products are exact; they and the accumulator are cut off where the largest of them has 2 bits
// more than float32, and so is their sum to float32. (Fasi, Higham, Mikaitis and Pranesh 2021, Numerical behavior of NVIDIA
// tensor cores: an A100 adds 8 products of halves at once.)
inline constexpr int kAddends = 9;

inline float truncated_sum(const double (&addends)[kAddends]) {
    double largest = 0.0;
    double sum = 0.0;
    for (const double addend : addends) {
        largest = std::fmax(largest, std::fabs(addend));
        sum += addend;
    }
    if (largest == 0.0 || !std::isfinite(sum)) {
        return static_cast<float>(sum);
    }
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 25);
    sum = 0.0;
    for (const double addend : addends) {
        sum += std::trunc(addend / unit) * unit;
    }
    const float rounded = static_cast<float>(sum);
    return std::fabs(static_cast<double>(rounded)) > std::fabs(sum) ? std::nextafterf(rounded, 0.0f) : rounded;
}

template <class Half>
void multiply_matrices(unsigned char* const* lanes, unsigned) {
    float a[16][16];
    float b[16][8];
    MatrixRegisters registers[32];
    for (int lane = 0; lane < 32; ++lane) {
        std::memcpy(&registers[lane], lanes[lane], sizeof(MatrixRegisters));
        for (int i = 0; i < 8; ++i) {
            const int row = lane / 4 + (i / 2 % 2) * 8;
            const int column = lane % 4 * 2 + i % 2 + i / 4 * 8;
            a[row][column] = float_of<Half>(static_cast<std::uint16_t>(registers[lane].a[i / 2] >> (i % 2 * 16)));
        }
        for (int i = 0; i < 4; ++i) {
            const int row = lane % 4 * 2 + i % 2 + i / 2 * 8;
            b[row][lane / 4] = float_of<Half>(static_cast<std::uint16_t>(registers[lane].b[i / 2] >> (i % 2 * 16)));
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8;
            const int column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k += kAddends - 1) {
                double addends[kAddends] = {static_cast<double>(registers[lane].d[i])};
                for (int n = 1; n < kAddends; ++n) {
                    addends[n] = static_cast<double>(a[row][k + n - 1]) * static_cast<double>(b[k + n - 1][column]);
                }
                registers[lane].d[i] = truncated_sum(addends);
            }
        }
        std::memcpy(lanes[lane], &registers[lane], sizeof(MatrixRegisters));
    }
}

template <class Half>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], TAM_PLACE_PARAMETERS) {
    MatrixRegisters registers;
    std::memcpy(registers.a, a, sizeof a);
    std::memcpy(registers.b, b, sizeof b);
    std::memcpy(registers.d, d, sizeof d);
    warp_meeting(0xffffffffu, "mma.sync", &registers, sizeof registers, &multiply_matrices<Half>, TAM_PLACE);
    std::memcpy(d, registers.d, sizeof d);
}

}  // namespace tam::cuda::emulation
