#pragma once

#include "tam_fast/isa.h"

namespace tam::cpu {

void note_isa(const char* name);

// The table for the active path. `tables` is indexed by Isa and holds null where an object was not built. Each table begins
// with `isa`, the name that its own object gives itself.
template <class Kernels>
const Kernels& select_kernels(const Kernels* const (&tables)[kIsaCount]) {
    const Kernels& chosen = *tables[static_cast<int>(active_isa())];
    note_isa(chosen.isa);
    return chosen;
}

}  // namespace tam::cpu

#ifdef TAM_X86_64
#define TAM_KERNEL_TABLES(op) {&op##_serial, &op##_avx2, &op##_avx512}
#else
#define TAM_KERNEL_TABLES(op) {&op##_serial, nullptr, nullptr}
#endif
