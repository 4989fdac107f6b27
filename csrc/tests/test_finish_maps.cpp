#include "tam_fast/finish_maps.h"

#include <algorithm>

#include "check.h"
#include "tam_fast/estimated_causal_inference.h"
#include "tam_fast/rank_gaussian_filter.h"

namespace {

using namespace tam;
using namespace tam::test;

struct Problem {
    std::int64_t rows;  // of `scores`
    std::int64_t size;
    std::int64_t text_size;
    std::vector<GridSize> grids;
    std::vector<std::int64_t> activation_rows;
    std::vector<std::int64_t> context_rows;
    std::vector<float> scores;
    std::vector<float> relevance;
    std::vector<float> text;
    std::vector<std::int64_t> text_length;

    std::int64_t targets() const { return static_cast<std::int64_t>(activation_rows.size()); }
    std::int64_t contexts() const { return static_cast<std::int64_t>(context_rows.size()); }
};

struct Result {
    std::vector<float> maps;
    std::vector<float> text;
    std::vector<float> scale;
    std::vector<std::uint8_t> flat;
};

Result fused(const Problem& p, int kernel_size, int threads) {
    const std::size_t targets = p.activation_rows.size();
    Result result{std::vector<float>(targets * static_cast<std::size_t>(p.size), -1.0f),
                  std::vector<float>(targets * static_cast<std::size_t>(p.text_size), -1.0f), std::vector<float>(targets),
                  std::vector<std::uint8_t>(targets)};
    FinishMapsParams params;
    params.scores = {p.scores.data(), DType::f32, p.rows, p.size, p.size, 1};
    params.activation_rows = {p.activation_rows.data(), p.targets(), 1};
    params.context_rows = {p.context_rows.data(), p.contexts(), 1};
    params.relevance = {p.relevance.data(), DType::f32, p.targets(), p.contexts(), p.contexts(), 1};
    params.text_relevance = {p.text.data(), DType::f32, p.targets(), p.text_size, p.text_size, 1};
    params.text_length = {p.text_length.data(), p.targets(), 1};
    params.grids = p.grids.data();
    params.grid_count = static_cast<std::int64_t>(p.grids.size());
    params.kernel_size = kernel_size;
    params.maps = result.maps.data();
    params.text = result.text.data();
    params.scale = result.scale.data();
    params.flat = result.flat.data();
    finish_maps(&params, 1, threads);
    return result;
}

// The same from the separate operators.
Result step_by_step(const Problem& p, int kernel_size) {
    const std::size_t targets = p.activation_rows.size();
    const std::size_t size = static_cast<std::size_t>(p.size);
    std::vector<float> activation;
    std::vector<float> context;
    for (const std::int64_t row : p.activation_rows) {
        activation.insert(activation.end(), p.scores.begin() + row * p.size, p.scores.begin() + (row + 1) * p.size);
    }
    for (const std::int64_t row : p.context_rows) {
        context.insert(context.end(), p.scores.begin() + row * p.size, p.scores.begin() + (row + 1) * p.size);
    }
    Result result{std::vector<float>(targets * size), std::vector<float>(targets * static_cast<std::size_t>(p.text_size)),
                  std::vector<float>(targets), std::vector<std::uint8_t>(targets)};
    std::vector<float> causal(targets * size);
    EstimatedCausalInferenceParams inference;
    inference.activation = {activation.data(), DType::f32, p.targets(), p.size, p.size, 1};
    inference.context = {context.data(), DType::f32, p.contexts(), p.size, p.size, 1};
    inference.relevance = {p.relevance.data(), DType::f32, p.targets(), p.contexts(), p.contexts(), 1};
    inference.causal = causal.data();
    inference.scale = result.scale.data();
    estimated_causal_inference(&inference, 1, 1);
    for (std::size_t t = 0; t < targets; ++t) {
        float* const map = &causal[t * size];
        const float* const text = p.text.data() + t * static_cast<std::size_t>(p.text_size);
        const std::int64_t length = p.text_length[t];
        float low = *std::min_element(map, map + size);
        float high = *std::max_element(map, map + size);
        for (std::int64_t i = 0; i < length; ++i) {
            low = std::min(low, text[i]);
            high = std::max(high, text[i]);
        }
        result.flat[t] = low == high ? 1 : 0;
        for (std::size_t n = 0; n < size; ++n) {
            map[n] = low == high ? 0.0f : (map[n] - low) / (high - low);
        }
        for (std::int64_t i = 0; i < length && low != high; ++i) {
            result.text[t * static_cast<std::size_t>(p.text_size) + static_cast<std::size_t>(i)] =
                (text[i] - low) / (high - low);
        }
        std::size_t offset = 0;
        for (const GridSize& grid : p.grids) {
            RankGaussianFilterParams filter;
            filter.input = map + offset;
            filter.output = &result.maps[t * size + offset];
            filter.height = grid.height;
            filter.width = grid.width;
            filter.row_stride = grid.width;
            filter.kernel_size = kernel_size;
            rank_gaussian_filter(&filter, 1, 1);
            offset += static_cast<std::size_t>(grid.height * grid.width);
        }
    }
    return result;
}

Problem random_problem(std::int64_t targets, std::int64_t contexts, std::int64_t text_size, std::vector<GridSize> grids,
                       std::mt19937& random) {
    Problem p;
    p.rows = targets + contexts + 2;
    p.size = 0;
    for (const GridSize& grid : grids) {
        p.size += grid.height * grid.width;
    }
    p.text_size = text_size;
    p.grids = std::move(grids);
    for (std::int64_t t = 0; t < targets; ++t) {
        p.activation_rows.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(p.rows)));
        p.text_length.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(text_size + 1)));
    }
    for (std::int64_t k = 0; k < contexts; ++k) {
        p.context_rows.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(p.rows)));
    }
    p.scores = random_values(p.rows * p.size, random, 0.6);
    p.relevance = random_values(targets * contexts, random, 0.5);
    p.text = random_values(targets * text_size, random);
    return p;
}

void test_equals_separate_steps() {
    std::mt19937 random(1);
    const Problem problems[] = {
        random_problem(5, 9, 7, {{36, 36}}, random),
        random_problem(1, 0, 0, {{4, 5}}, random),
        random_problem(12, 30, 30, {{24, 24}, {5, 7}}, random),
        random_problem(0, 3, 2, {{2, 3}}, random),
        random_problem(40, 80, 50, {{3, 3}, {1, 1}, {1, 9}}, random),
        random_problem(3, 70, 4, {{90, 300}}, random),
    };
    for (const Problem& problem : problems) {
        for (const int kernel_size : {1, 3, 5, 7}) {
            for_each_isa([&](const std::string& isa) {
                const Result expected = step_by_step(problem, kernel_size);
                for (const int threads : {1, 3}) {
                    const Result result = fused(problem, kernel_size, threads);
                    const std::string what = "k=" + std::to_string(kernel_size) + " " + isa;
                    check(same_bits(result.maps, expected.maps), "maps " + what);
                    check(same_bits(result.text, expected.text), "text " + what);
                    check(same_bits(result.scale, expected.scale), "scale " + what);
                    check(same_bits(result.flat, expected.flat), "flat " + what);
                }
            });
        }
    }
}

void test_flat() {
    std::mt19937 random(2);
    Problem p = random_problem(2, 0, 3, {{4, 4}}, random);
    p.scores.assign(p.scores.size(), 0.25f);
    p.text.assign(p.text.size(), 0.25f);
    p.text[5] = 0.5f;
    p.text_length = {3, 3};
    for_each_isa([&](const std::string& isa) {
        const Result result = fused(p, 3, 1);
        check(result.flat[0] == 1 && result.flat[1] == 0, "flat " + isa);
        check(std::count(result.maps.begin(), result.maps.end(), 0.0f) == 32, "flat maps are 0, " + isa);
        check(result.text == std::vector<float>{0, 0, 0, 0, 0, 1}, "text beside a flat map, " + isa);
    });
}

}  // namespace

int main() {
    test_equals_separate_steps();
    test_flat();
    return finish();
}
