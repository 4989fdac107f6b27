// The CUDA kernels on the emulation, in memory of exact size: for sanitizers. Results against the CPU's kernels.

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "platform.h"
#include "tam_fast/cuda/finish_maps.h"
#include "tam_fast/cuda/rank_gaussian_filter.h"
#include "tam_fast/finish_maps.h"
#include "tam_fast/rank_gaussian_filter.h"

namespace tam::test {
namespace {

constexpr double kTolerance = 2e-6;

template <class Storage>
std::vector<Storage> converted(const std::vector<float>& values) {
    std::vector<Storage> result;
    for (const float value : values) {
        if constexpr (std::is_same_v<Storage, __half>) {
            result.push_back(__float2half_rn(value));
        } else if constexpr (std::is_same_v<Storage, __nv_bfloat16>) {
            result.push_back(__float2bfloat16_rn(value));
        } else {
            result.push_back(static_cast<Storage>(value));
        }
    }
    return result;
}

template <class Storage>
void test_filter(DType dtype, int kernel_size, bool special) {
    std::mt19937 random(static_cast<unsigned>(kernel_size));
    for (const std::int64_t height : {1, 2, 5, 16, 19}) {
        for (const std::int64_t width : {1, 3, 4, 8, 13, 16}) {
            const std::int64_t count = 2;
            std::vector<float> values = random_values(count * height * width, random, 0.7);
            if (special) {
                values[values.size() / 2] = std::nanf("");
                values[values.size() / 3] = -1.0f;
            }
            const std::vector<Storage> input = converted<Storage>(values);
            std::vector<Storage> got(input.size());
            std::vector<Storage> expected(input.size());
            const cuda::RankGaussianFilterItem item{input.data(), got.data(),     dtype, count, height,
                                                    width,        height * width, width, 1};
            check(cuda::launch_rank_gaussian_filter(&item, 1, kernel_size, false, nullptr) == cudaSuccess, "launch");
            RankGaussianFilterParams params;
            params.input = input.data();
            params.output = expected.data();
            params.dtype = dtype;
            params.leading_dims = 1;
            params.leading_sizes[0] = count;
            params.leading_strides[0] = height * width;
            params.height = height;
            params.width = width;
            params.row_stride = width;
            params.kernel_size = kernel_size;
            rank_gaussian_filter(&params, 1, 1);
            const double half = dtype == DType::f16 ? 0x1p-11 : dtype == DType::bf16 ? 0x1p-8 : 0.0;
            for (std::size_t i = 0; i < got.size(); ++i) {
                double a = 0.0;
                double b = 0.0;
                if constexpr (std::is_same_v<Storage, __half>) {
                    a = static_cast<double>(__half2float(got[i]));
                    b = static_cast<double>(__half2float(expected[i]));
                } else if constexpr (std::is_same_v<Storage, __nv_bfloat16>) {
                    a = static_cast<double>(__bfloat162float(got[i]));
                    b = static_cast<double>(__bfloat162float(expected[i]));
                } else {
                    a = static_cast<double>(got[i]);
                    b = static_cast<double>(expected[i]);
                }
                check_near(a, b, kTolerance + half,
                           "filter of size " + std::to_string(kernel_size) + " " + std::to_string(height) + " x " +
                               std::to_string(width) + ", dtype " + std::to_string(static_cast<int>(dtype)));
            }
        }
    }
}

void test_finish(int kernel_size, std::int64_t shared_positions, const std::vector<GridSize>& grids) {
    std::mt19937 random(7);
    const std::int64_t targets = 3;
    const std::int64_t contexts = 4;
    const std::int64_t text = 5;
    std::vector<std::int64_t> table;
    std::int64_t positions = 0;
    for (const GridSize& grid : grids) {
        table.insert(table.end(), {grid.height, grid.width, positions});
        positions += grid.height * grid.width;
    }
    const std::vector<float> scores = random_values((targets + contexts) * positions, random);
    const std::vector<float> relevance = random_values(targets * contexts, random, 0.7);
    const std::vector<float> raw = random_values(targets * text, random);
    const std::vector<std::int64_t> context_rows{3, 4, 5, 6};
    const std::vector<std::int64_t> lengths{0, 3, 5};

    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    std::vector<float> maps(size(targets * positions));
    std::vector<float> text_out(size(targets * text));
    std::vector<float> scale(size(targets));
    std::vector<std::uint8_t> flat(size(targets));
    FinishMapsParams params;
    params.scores = {scores.data(), DType::f32, targets + contexts, positions, positions, 1};
    params.context_rows = {context_rows.data(), contexts, 1};
    params.relevance = {relevance.data(), DType::f32, targets, contexts, contexts, 1};
    params.text_relevance = {raw.data(), DType::f32, targets, text, text, 1};
    params.text_length = {lengths.data(), targets, 1};
    params.grids = grids.data();
    params.grid_count = static_cast<std::int64_t>(grids.size());
    params.kernel_size = kernel_size;
    params.maps = maps.data();
    params.text = text_out.data();
    params.scale = scale.data();
    params.flat = flat.data();
    finish_maps(&params, 1, 1);

    std::vector<float> interference(size(targets * positions));
    for (std::int64_t t = 0; t < targets; ++t) {
        float largest = 0.0f;
        for (std::int64_t k = 0; k < contexts; ++k) {
            largest = std::fmax(largest, relevance[size(t * contexts + k)]);
        }
        const int power = largest > 0.0f ? -std::ilogb(largest) : 0;
        for (std::int64_t n = 0; n < positions; ++n) {
            double sum = 0.0;
            for (std::int64_t k = 0; k < contexts; ++k) {
                sum += static_cast<double>(relevance[size(t * contexts + k)]) *
                       static_cast<double>(scores[size((targets + k) * positions + n)]);
            }
            interference[size(t * positions + n)] = static_cast<float>(std::ldexp(sum, power));
        }
    }
    std::vector<float> got_maps(maps.size());
    std::vector<std::uint8_t> got_bytes(maps.size());
    std::vector<float> got_text(text_out.size());
    std::vector<float> got_scale(scale.size());
    std::vector<std::uint8_t> got_flat(flat.size());
    for (const bool bytes : {false, true}) {
        std::vector<float> work = interference;
        cuda::AnswerItem item;
        item.activation = {scores.data(), positions, nullptr};
        item.context = {scores.data(), positions, context_rows.data()};
        item.relevance = {relevance.data(), contexts, nullptr};
        item.text = {raw.data(), text, nullptr};
        item.text_size = text;
        item.text_lengths = lengths.data();
        item.targets = targets;
        item.contexts = contexts;
        item.positions = positions;
        item.grid_count = static_cast<std::int64_t>(grids.size());
        item.grids = table.data();
        item.interference = work.data();
        item.maps = bytes ? static_cast<void*>(got_bytes.data()) : got_maps.data();
        item.maps_uint8 = bytes;
        item.text_out = got_text.data();
        item.scale = got_scale.data();
        item.flat = got_flat.data();
        const cudaError_t error =
            cuda::launch_finish_maps(&item, 1, kernel_size, false, cuda::FinishStage::maps, shared_positions, nullptr);
        check(error == cudaSuccess, std::string("finish_maps: ") + cudaGetErrorString(error));
    }
    for (std::size_t i = 0; i < maps.size(); ++i) {
        check_near(static_cast<double>(got_maps[i]), static_cast<double>(maps[i]), kTolerance, "maps");
        check(static_cast<int>(got_bytes[i]) == static_cast<int>(std::floor(got_maps[i] * 255.0f)), "uint8 maps");
    }
    for (std::size_t i = 0; i < text_out.size(); ++i) {
        check_near(static_cast<double>(got_text[i]), static_cast<double>(text_out[i]), kTolerance, "text");
    }
    for (std::size_t i = 0; i < scale.size(); ++i) {
        check_near(static_cast<double>(got_scale[i]), static_cast<double>(scale[i]), kTolerance, "scale");
        check(got_flat[i] == flat[i], "flat");
    }
}

}  // namespace
}  // namespace tam::test

int main() {
    using namespace tam;
    using namespace tam::test;
    for (const int kernel_size : {1, 3, 5, 7, 9}) {
        for (const bool special : {false, true}) {
            test_filter<float>(DType::f32, kernel_size, special);
            test_filter<__half>(DType::f16, kernel_size, special);
            test_filter<__nv_bfloat16>(DType::bf16, kernel_size, special);
            test_filter<double>(DType::f64, kernel_size, special);
        }
        for (const std::int64_t shared_positions : {std::int64_t{0}, cuda::finish_maps_shared_positions()}) {
            test_finish(kernel_size, shared_positions, {{6, 8}});
            test_finish(kernel_size, shared_positions, {{5, 7}, {1, 1}, {4, 4}});
        }
    }
    return finish();
}
