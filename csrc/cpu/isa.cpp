#include "tam_fast/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu_features.h"
#include "dispatch.h"

namespace tam {
namespace {

constexpr int kUnset = -1;
std::atomic<int> g_forced{kUnset};    // by set_isa
std::atomic<int> g_selected{kUnset};  // by the environment or the machine; found once
thread_local const char* t_last_isa = "";

bool available(Isa isa) {
    static const cpu::CpuFeatures features = cpu::detect_cpu_features();
    switch (isa) {
        case Isa::serial: return true;
        case Isa::avx2: return features.avx2;
        case Isa::avx512: return features.avx512;
    }
    return false;
}

std::string available_names() {
    std::string names;
    for (const Isa isa : available_isas()) {
        names += names.empty() ? "" : ", ";
        names += isa_name(isa);
    }
    return names;
}

Isa parse(const std::string& name, const char* source) {
    for (int i = 0; i < kIsaCount; ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (name == isa_name(isa)) {
            if (!available(isa)) {
                throw std::runtime_error(std::string(source) + ": this machine cannot run '" + name + "'; expected one of " +
                                         available_names());
            }
            return isa;
        }
    }
    throw std::runtime_error(std::string(source) + ": expected one of serial, avx2, avx512 (here: " + available_names() +
                             "), got '" + name + "'");
}

}  // namespace

const char* isa_name(Isa isa) {
    constexpr const char* kNames[kIsaCount] = {"serial", "avx2", "avx512"};
    return kNames[static_cast<int>(isa)];
}

std::vector<Isa> available_isas() {
    std::vector<Isa> isas;
    for (int i = 0; i < kIsaCount; ++i) {
        if (available(static_cast<Isa>(i))) {
            isas.push_back(static_cast<Isa>(i));
        }
    }
    return isas;
}

Isa active_isa() {
    const int forced = g_forced.load(std::memory_order_relaxed);
    if (forced != kUnset) {
        return static_cast<Isa>(forced);
    }
    int selected = g_selected.load(std::memory_order_relaxed);
    if (selected == kUnset) {
        const char* wish = std::getenv("TAM_FAST_ISA");
        selected =
            static_cast<int>(wish != nullptr && *wish != '\0' ? parse(wish, "TAM_FAST_ISA") : available_isas().back());
        g_selected.store(selected, std::memory_order_relaxed);
    }
    return static_cast<Isa>(selected);
}

void set_isa(const std::string& name) {
    g_forced.store(name.empty() ? kUnset : static_cast<int>(parse(name, "isa")), std::memory_order_relaxed);
}

const char* last_isa() {
    return t_last_isa;
}

namespace cpu {
void note_isa(const char* name) {
    t_last_isa = name;
}
}  // namespace cpu

}  // namespace tam
