#include <cpuid.h>

#include <cstdint>
#include <initializer_list>

#include "cpu_features.h"

namespace tam::cpu {
namespace {

constexpr bool has(std::uint32_t word, std::initializer_list<int> bits) {
    for (const int bit : bits) {
        if ((word >> bit & 1u) == 0) {
            return false;
        }
    }
    return true;
}

// Extended control register 0: which register state the operating system saves.
std::uint32_t enabled_state() {
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

}  // namespace

CpuFeatures detect_cpu_features() {
    CpuFeatures features;
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) {
        return features;
    }
    constexpr int kFma = 12, kOsxsave = 27, kAvx = 28, kF16c = 29;
    if (!has(ecx, {kFma, kOsxsave, kAvx, kF16c})) {
        return features;
    }
    const std::uint32_t state = enabled_state();
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) {
        return features;
    }
    constexpr int kSse = 1, kYmm = 2, kMask = 5, kZmmLow = 6, kZmmHigh = 7;
    constexpr int kAvx2 = 5, kAvx512f = 16, kAvx512dq = 17, kAvx512bw = 30, kAvx512vl = 31;
    features.avx2 = has(state, {kSse, kYmm}) && has(ebx, {kAvx2});
    features.avx512 =
        features.avx2 && has(state, {kMask, kZmmLow, kZmmHigh}) && has(ebx, {kAvx512f, kAvx512dq, kAvx512bw, kAvx512vl});
    return features;
}

}  // namespace tam::cpu
