// Flush-to-zero and denormals-are-zero, as other libraries leave them set, must neither be heeded nor changed.

#include <xmmintrin.h>

#include "check.h"
#include "tam_fast/rank_gaussian_filter.h"

namespace {

using namespace tam;
using namespace tam::test;

constexpr unsigned kFlushToZero = 0x8000;
constexpr unsigned kDenormalsAreZero = 0x0040;

std::vector<float> filtered(const std::vector<float>& map, int threads) {
    std::vector<float> output(map.size());
    RankGaussianFilterParams params;
    params.input = map.data();
    params.output = output.data();
    params.height = 200;
    params.width = 200;
    params.row_stride = 200;
    rank_gaussian_filter(&params, 1, threads);
    return output;
}

}  // namespace

int main() {
    std::mt19937 random(1);
    std::vector<float> map = random_values(200 * 200, random);
    for (float& value : map) {
        value *= 1e-41f;
    }
    for_each_isa([&](const std::string& isa) {
        const std::vector<float> expected = filtered(map, 1);
        check(expected[0] > 0.0f, "denormals are kept, " + isa);
        const unsigned before = _mm_getcsr();
        for (const int threads : {1, 3}) {
            _mm_setcsr(before | kFlushToZero | kDenormalsAreZero);
            const std::vector<float> output = filtered(map, threads);
            const unsigned after = _mm_getcsr();
            _mm_setcsr(before);
            check((after & (kFlushToZero | kDenormalsAreZero)) == (kFlushToZero | kDenormalsAreZero),
                  "the caller's modes are left alone, " + isa);
            check(same_bits(output, expected), "the caller's modes have no effect, " + isa);
        }
    });
    return finish();
}
