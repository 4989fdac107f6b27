#pragma once

#include <string>
#include <vector>

namespace tam {

enum class Isa : int { serial = 0, avx2 = 1, avx512 = 2 };
inline constexpr int kIsaCount = 3;

const char* isa_name(Isa isa);
std::vector<Isa> available_isas();

// The path that the operators take: set_isa's, else the one named by the environment variable TAM_FAST_ISA, else the
// widest this machine has. Throws std::runtime_error when the named one is unknown or missing here.
Isa active_isa();

// Forces a path for the whole process; an empty name returns to TAM_FAST_ISA. Throws like active_isa.
void set_isa(const std::string& name);

// Name of the path that ran the calling thread's latest operator, as stated by the kernels themselves; "" before the first.
const char* last_isa();

}  // namespace tam
