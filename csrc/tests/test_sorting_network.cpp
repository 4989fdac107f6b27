#include "tam_fast/sorting_network.h"

#include <algorithm>
#include <stdexcept>

#include "check.h"

namespace {

using namespace tam;
using namespace tam::test;

// Sorts vectors of zeros and ones, 64 at a time: a comparator is an AND and an OR.
bool sorts_all_zero_one_vectors(int kernel_size) {
    const std::size_t wires = static_cast<std::size_t>(kernel_size * kernel_size);
    const std::vector<Comparator> network = sorting_network(kernel_size);
    constexpr std::uint64_t kLow[] = {0xaaaaaaaaaaaaaaaa, 0xcccccccccccccccc, 0xf0f0f0f0f0f0f0f0,
                                      0xff00ff00ff00ff00, 0xffff0000ffff0000, 0xffffffff00000000};
    std::vector<std::uint64_t> values(wires);
    for (std::uint64_t high = 0; high < std::uint64_t{1} << (wires - 6); ++high) {
        for (std::size_t wire = 0; wire < wires; ++wire) {
            values[wire] = wire < 6 ? kLow[wire] : (high >> (wire - 6) & 1) != 0 ? ~std::uint64_t{0} : 0;
        }
        for (const Comparator c : network) {
            const std::uint64_t both = values[c.low] & values[c.high];
            values[c.high] |= values[c.low];
            values[c.low] = both;
        }
        for (std::size_t wire = 1; wire < wires; ++wire) {
            if ((values[wire - 1] & ~values[wire]) != 0) {
                return false;
            }
        }
    }
    return true;
}

// Enough for a proof where there are too many vectors: all those whose columns are sorted, as the columns' own networks,
// checked on all theirs, leave them.
bool sorts_all_sorted_columns(int k) {
    const std::vector<Comparator> network = sorting_network(k);
    std::uint64_t states = 1;
    for (int column = 0; column < k; ++column) {
        states *= static_cast<std::uint64_t>(k + 1);
    }
    std::vector<std::uint64_t> values(static_cast<std::size_t>(k * k));
    for (std::uint64_t first = 0; first < states; first += 64) {
        std::fill(values.begin(), values.end(), 0);
        for (std::uint64_t lane = 0; lane < 64; ++lane) {
            std::uint64_t rest = std::min(first + lane, states - 1);
            for (int column = 0; column < k; ++column) {
                const int zeros = static_cast<int>(rest % static_cast<std::uint64_t>(k + 1));
                rest /= static_cast<std::uint64_t>(k + 1);
                for (int row = zeros; row < k; ++row) {
                    values[static_cast<std::size_t>(row * k + column)] |= std::uint64_t{1} << lane;
                }
            }
        }
        for (const Comparator c : network) {
            const std::uint64_t both = values[c.low] & values[c.high];
            values[c.high] |= values[c.low];
            values[c.low] = both;
        }
        for (std::size_t wire = 1; wire < values.size(); ++wire) {
            if ((values[wire - 1] & ~values[wire]) != 0) {
                return false;
            }
        }
    }
    return true;
}

template <int K>
bool line_sorts_all_zero_one_vectors() {
    for (unsigned pattern = 0; pattern < 1u << K; ++pattern) {
        unsigned values = pattern;
        for (const Comparator c : WindowNetwork<K>::line) {
            const unsigned swap = (values >> c.low & 1u) & (~values >> c.high & 1u);
            values ^= swap << c.low | swap << c.high;
        }
        const unsigned zeros = static_cast<unsigned>(K) - static_cast<unsigned>(__builtin_popcount(pattern));
        if (values != (((1u << K) - 1u) >> zeros << zeros)) {
            return false;
        }
    }
    return true;
}

void test_generated() {
    std::mt19937 random(6);
    for (int k = 3; k <= 15; k += 2) {
        const std::vector<Comparator> network = sorting_network(k);
        for (int repeat = 0; repeat < 200; ++repeat) {
            std::vector<std::uint32_t> values(static_cast<std::size_t>(k * k));
            for (std::uint32_t& value : values) {
                value = static_cast<std::uint32_t>(random() % (repeat % 2 == 0 ? 2 : 1000));
            }
            for (const Comparator c : network) {
                if (values[c.high] < values[c.low]) {
                    std::swap(values[c.low], values[c.high]);
                }
            }
            check(std::is_sorted(values.begin(), values.end()), "k=" + std::to_string(k));
        }
    }
}

}  // namespace

int main() {
    check(sorts_all_zero_one_vectors(3), "9 wires");
    check(sorts_all_zero_one_vectors(5), "25 wires");
    check(line_sorts_all_zero_one_vectors<7>() && sorts_all_sorted_columns(7), "49 wires");
    test_generated();
    for (const int size : {-1, 0, 1, 4, 17}) {
        bool refused = false;
        try {
            sorting_network(size);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        check(refused, "kernel size " + std::to_string(size));
    }
    return finish();
}
