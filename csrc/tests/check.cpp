#include "check.h"

#include <cmath>
#include <cstdio>

namespace tam::test {
namespace {

int g_checks = 0;
int g_failures = 0;

}  // namespace

void check(bool holds, const std::string& what) {
    ++g_checks;
    if (!holds) {
        ++g_failures;
        std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    }
}

void check_near(double got, double expected, double tolerance, const std::string& what) {
    const bool both_nan = std::isnan(got) && std::isnan(expected);
    check(both_nan || std::fabs(got - expected) <= tolerance,
          what + ": expected " + std::to_string(expected) + ", got " + std::to_string(got));
}

int finish() {
    std::printf("%d checks, %d failures\n", g_checks, g_failures);
    return g_failures == 0 ? 0 : 1;
}

void for_each_isa(const std::function<void(const std::string&)>& body) {
    for (const Isa isa : available_isas()) {
        set_isa(isa_name(isa));
        body(isa_name(isa));
        check(std::string(last_isa()) == isa_name(isa), std::string(isa_name(isa)) + " ran " + last_isa());
    }
    set_isa("");
}

}  // namespace tam::test
