#pragma once

namespace tam::cpu {

// What both the processor and the operating system (which must save the wide registers) support.
struct CpuFeatures {
    bool avx2 = false;    // AVX2, FMA, F16C
    bool avx512 = false;  // the above and AVX-512 F, BW, DQ, VL
};

CpuFeatures detect_cpu_features();

}  // namespace tam::cpu
