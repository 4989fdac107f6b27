#include "tam_fast/rank_gaussian_filter.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"

namespace {

using namespace tam;
using namespace tam::test;

std::int64_t reflect(std::int64_t i, std::int64_t size) {
    while (size > 1 && (i < 0 || i >= size)) {
        i = i < 0 ? -i : 2 * (size - 1) - i;
    }
    return size == 1 ? 0 : i;
}

// One output value from the equations, in float64.
double filtered(const std::vector<float>& map, std::int64_t height, std::int64_t width, int k, std::int64_t y,
                std::int64_t x) {
    std::vector<double> window;
    for (std::int64_t dy = -(k / 2); dy <= k / 2; ++dy) {
        for (std::int64_t dx = -(k / 2); dx <= k / 2; ++dx) {
            window.push_back(static_cast<double>(
                map[static_cast<std::size_t>(reflect(y + dy, height) * width + reflect(x + dx, width))]));
        }
    }
    double mean = 0.0;
    for (const double value : window) {
        if (!std::isfinite(value)) {
            return std::numeric_limits<double>::quiet_NaN();
        }
        mean += value / static_cast<double>(window.size());
    }
    std::sort(window.begin(), window.end());
    if (mean <= 0.0) {
        return 0.0;
    }
    if (window.front() == window.back()) {
        return window.front();
    }
    double variance = 0.0;
    for (const double value : window) {
        variance += (value - mean) * (value - mean) / static_cast<double>(window.size());
    }
    double weighted = 0.0;
    double weights = 0.0;
    for (std::size_t rank = 0; rank < window.size(); ++rank) {
        const double distance = static_cast<double>(rank) - static_cast<double>(window.size() / 2);
        const double weight = std::exp(-distance * distance * mean * mean / (2.0 * variance));
        weighted += weight * window[rank];
        weights += weight;
    }
    return weighted / weights;
}

std::vector<float> run(const std::vector<float>& map, std::int64_t height, std::int64_t width, int k, int threads = 1) {
    std::vector<float> output(map.size(), -1.0f);
    RankGaussianFilterParams params;
    params.input = map.data();
    params.output = output.data();
    params.height = height;
    params.width = width;
    params.row_stride = width;
    params.kernel_size = k;
    rank_gaussian_filter(&params, 1, threads);
    return output;
}

void compare_with_oracle(const std::vector<float>& map, std::int64_t height, std::int64_t width, int k, double tolerance,
                         const std::string& what) {
    std::vector<float> serial;
    for_each_isa([&](const std::string& isa) {
        const std::vector<float> output = run(map, height, width, k);
        if (serial.empty()) {
            serial = output;
            double largest = 0.0;
            for (const float value : map) {
                largest = std::isfinite(value) ? std::max(largest, std::fabs(static_cast<double>(value))) : largest;
            }
            for (std::int64_t i = 0; i < height * width; ++i) {
                check_near(static_cast<double>(output[static_cast<std::size_t>(i)]) / largest,
                           filtered(map, height, width, k, i / width, i % width) / largest, tolerance,
                           what + " at " + std::to_string(i));
            }
        }
        check(same_bits(output, serial), what + ": bits of " + isa);
    });
}

void test_oracle() {
    std::mt19937 random(1);
    const std::int64_t sides[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64};
    for (const int k : {3, 5, 7}) {
        for (const std::int64_t height : sides) {
            for (const std::int64_t width : sides) {
                if (height * width > (k == 7 ? 150 : 700)) {
                    continue;
                }
                const std::string what = std::to_string(height) + "x" + std::to_string(width) + " k=" + std::to_string(k);
                compare_with_oracle(random_values(height * width, random), height, width, k, 4e-7, "dense " + what);
                compare_with_oracle(random_values(height * width, random, 0.1), height, width, k, 1.5e-6, "sparse " + what);
            }
        }
    }
    for (const int k : {9, 11, 13, 15}) {
        compare_with_oracle(random_values(12 * 19, random), 12, 19, k, 4e-7, "dense k=" + std::to_string(k));
    }
}

// Wide and tall maps: the sanitizers watch that vectors neither read nor write beyond them, whatever the path.
void test_plain_maps() {
    std::mt19937 random(6);
    const std::int64_t shapes[][2] = {{5, 36}, {200, 24}, {1, 96}, {7, 102}, {9, 112}, {40, 128}, {33, 130}, {3, 300}};
    for (const auto& shape : shapes) {
        for (const int k : {3, 5, 7}) {
            const std::vector<float> map = random_values(shape[0] * shape[1], random);
            std::vector<float> expected;
            for_each_isa([&](const std::string& isa) {
                const std::vector<float> output = run(map, shape[0], shape[1], k);
                expected = expected.empty() ? output : expected;
                check(same_bits(output, expected), std::to_string(shape[0]) + "x" + std::to_string(shape[1]) +
                                                       " k=" + std::to_string(k) + ": bits of " + isa);
            });
            const std::int64_t last = shape[0] * shape[1] - 1;
            check_near(static_cast<double>(expected.back()),
                       filtered(map, shape[0], shape[1], k, last / shape[1], last % shape[1]), 4e-7, "last window");
        }
    }
}

// Batches whose maps are filtered together, some of which are not plain: every map as alone, and nothing beyond the last.
void test_maps_together() {
    std::mt19937 random(7);
    const std::int64_t shapes[][2] = {{16, 16}, {3, 17}, {9, 23}, {24, 24}, {36, 36}, {30, 47}, {61, 64}, {1, 40}, {2, 100}};
    for (const auto& shape : shapes) {
        const std::int64_t size = shape[0] * shape[1];
        for (const std::int64_t count : {2, 7, 8, 9, 21}) {
            std::vector<float> maps = random_values(count * size, random, 0.7);
            const std::size_t step = static_cast<std::size_t>(size);
            maps[step] = -1.0f;
            if (count > 7) {
                maps[7 * step - 1] = std::numeric_limits<float>::infinity();
                maps[7 * step + step / 2] = 1e-30f;
            }
            for (const int k : {3, 5}) {
                for_each_isa([&](const std::string& isa) {
                    std::vector<float> output(maps.size() + 64, -2.0f);
                    RankGaussianFilterParams params;
                    params.input = maps.data();
                    params.output = output.data();
                    params.leading_dims = 1;
                    params.leading_sizes[0] = count;
                    params.leading_strides[0] = size;
                    params.height = shape[0];
                    params.width = shape[1];
                    params.row_stride = shape[1];
                    params.kernel_size = k;
                    rank_gaussian_filter(&params, 1, 2);
                    std::vector<float> expected;
                    for (auto map = maps.begin(); map != maps.end(); map += size) {
                        const std::vector<float> alone = run({map, map + size}, shape[0], shape[1], k);
                        expected.insert(expected.end(), alone.begin(), alone.end());
                    }
                    expected.resize(output.size(), -2.0f);
                    check(same_bits(output, expected), std::to_string(count) + " maps of " + std::to_string(shape[0]) + "x" +
                                                           std::to_string(shape[1]) + " k=" + std::to_string(k) + " " + isa);
                });
            }
        }
    }
}

void test_scales() {
    std::mt19937 random(2);
    for (const float scale : {1e-30f, 1e-18f, 1.0f, 1e18f, 1e30f, 3e38f}) {
        std::vector<float> map = random_values(20 * 20, random);
        for (float& value : map) {
            value *= scale;
        }
        compare_with_oracle(map, 20, 20, 3, 4e-7, "scale " + std::to_string(scale));
        compare_with_oracle(map, 20, 20, 5, 4e-7, "scale " + std::to_string(scale));
    }
    // A range that float32 cannot hold after scaling: constant windows stay exact.
    std::vector<float> map(10 * 20, 1e-30f);
    std::fill(map.begin() + 100, map.end(), 3e38f);
    for_each_isa([&](const std::string& isa) {
        const std::vector<float> output = run(map, 10, 20, 3);
        check(output[0] == 1e-30f && output.back() == 3e38f, "mixed range " + isa);
    });
}

void test_special_values() {
    std::mt19937 random(3);
    for (const float special : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                -std::numeric_limits<float>::infinity()}) {
        for (const int k : {1, 3, 5, 7}) {
            const std::vector<float> clean = random_values(17 * 19, random);
            std::vector<float> map = clean;
            map[5 * 19 + 6] = special;
            for_each_isa([&](const std::string& isa) {
                const std::vector<float> expected = run(clean, 17, 19, k);
                const std::vector<float> output = run(map, 17, 19, k);
                for (std::int64_t i = 0; i < 17 * 19; ++i) {
                    const bool near = std::abs(i / 19 - 5) <= k / 2 && std::abs(i % 19 - 6) <= k / 2;
                    const std::size_t at = static_cast<std::size_t>(i);
                    check(near ? std::isnan(output[at]) : output[at] == expected[at],
                          "special value, k=" + std::to_string(k) + " " + isa);
                }
            });
        }
    }
    for_each_isa([](const std::string& isa) {
        for (const float value : {0.0f, 0.3f, 1e-44f, 3e38f}) {
            for (const int k : {3, 5, 7, 15}) {
                const std::vector<float> map(9 * 9, value);
                check(same_bits(run(map, 9, 9, k), map), "constant map " + isa);
            }
        }
        const std::vector<float> zeros(25, 0.0f);
        check(same_bits(run(std::vector<float>(25, -0.0f), 5, 5, 3), zeros), "negative zero " + isa);
        check(same_bits(run(std::vector<float>(25, -1.0f), 5, 5, 3), zeros), "negative map " + isa);
    });
}

void test_threads_and_tiles() {
    std::mt19937 random(4);
    const std::int64_t shapes[][2] = {{300, 700}, {1, 5000}, {5000, 1}, {65, 257}};
    for (const auto& shape : shapes) {
        const std::vector<float> map = random_values(shape[0] * shape[1], random);
        const std::vector<float> once = run(map, shape[0], shape[1], 3);
        for (const int threads : {2, 3, 8}) {
            check(same_bits(run(map, shape[0], shape[1], 3, threads), once), "threads " + std::to_string(threads));
        }
        for (int i = 0; i < 50; ++i) {
            const std::int64_t at = static_cast<std::int64_t>(random() % map.size());
            check_near(static_cast<double>(once[static_cast<std::size_t>(at)]),
                       filtered(map, shape[0], shape[1], 3, at / shape[1], at % shape[1]), 4e-7, "tiles");
        }
    }
}

void test_strides() {
    std::mt19937 random(5);
    const std::vector<float> base = random_values(6 * 40 * 50, random);
    // Every second row and column of three maps, from the end backwards.
    RankGaussianFilterParams params;
    params.input = base.data() + base.size() - 1;
    params.leading_dims = 1;
    params.leading_sizes[0] = 3;
    params.leading_strides[0] = -2 * 40 * 50;
    params.height = 20;
    params.width = 25;
    params.row_stride = -2 * 50;
    params.col_stride = -2;
    for_each_isa([&](const std::string& isa) {
        std::vector<float> output(3 * 20 * 25);
        params.output = output.data();
        rank_gaussian_filter(&params, 1, 2);
        for (std::int64_t n = 0; n < 3; ++n) {
            std::vector<float> map;
            for (std::int64_t y = 0; y < 20; ++y) {
                for (std::int64_t x = 0; x < 25; ++x) {
                    map.push_back(base[static_cast<std::size_t>(6 * 40 * 50 - 1 - n * 4000 - y * 100 - x * 2)]);
                }
            }
            const std::vector<float> expected = run(map, 20, 25, 3);
            check(std::equal(expected.begin(), expected.end(), output.begin() + n * 500), "negative strides " + isa);
        }
    });
}

void test_empty() {
    RankGaussianFilterParams params;
    params.leading_dims = 1;
    params.height = 4;
    params.width = 4;
    rank_gaussian_filter(&params, 1, 2);
    rank_gaussian_filter(nullptr, 0, 2);
}

}  // namespace

int main() {
    test_oracle();
    test_plain_maps();
    test_maps_together();
    test_scales();
    test_special_values();
    test_threads_and_tiles();
    test_strides();
    test_empty();
    return finish();
}
