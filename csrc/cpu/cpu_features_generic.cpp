#include "cpu_features.h"

namespace tam::cpu {

CpuFeatures detect_cpu_features() {
    return {};
}

}  // namespace tam::cpu
