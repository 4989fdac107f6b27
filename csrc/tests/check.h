#pragma once

// A few lines of test support: checks that report and count, and data that is awkward on purpose.

#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tam_fast/isa.h"

namespace tam::test {

void check(bool holds, const std::string& what);
void check_near(double got, double expected, double tolerance, const std::string& what);

// The exit status of a test program.
int finish();

// Runs `body` once for each instruction set of this machine, with its name.
void for_each_isa(const std::function<void(const std::string&)>& body);

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Uniform in [0, 1); every value is 0 with probability 1 - density.
inline std::vector<float> random_values(std::int64_t size, std::mt19937& random, double density = 1.0) {
    std::uniform_real_distribution<double> uniform(0.0, 1.0);
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) {
        value = uniform(random) < density ? static_cast<float>(uniform(random)) : 0.0f;
    }
    return values;
}

}  // namespace tam::test
