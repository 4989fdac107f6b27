#include "tam_fast/estimated_causal_inference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "tam_fast/least_squares_scale.h"

namespace {

using namespace tam;
using namespace tam::test;

struct Problem {
    std::int64_t targets;
    std::int64_t contexts;
    std::int64_t size;
    std::vector<float> activation;
    std::vector<float> context;
    std::vector<float> relevance;
};

struct Result {
    std::vector<float> causal;
    std::vector<float> scale;
};

Problem random_problem(std::int64_t targets, std::int64_t contexts, std::int64_t size, std::mt19937& random) {
    Problem problem{targets,
                    contexts,
                    size,
                    random_values(targets * size, random, 0.7),
                    random_values(contexts * size, random, 0.7),
                    random_values(targets * contexts, random, 0.8)};
    // The context of a target ends before it.
    for (std::int64_t t = 0; t < targets; ++t) {
        for (std::int64_t k = std::max<std::int64_t>(contexts - targets + t, 0); k < contexts; ++k) {
            problem.relevance[static_cast<std::size_t>(t * contexts + k)] = 0.0f;
        }
    }
    return problem;
}

Result run(const Problem& p, int threads, std::int64_t first = 0, std::int64_t count = -1) {
    count = count < 0 ? p.targets : count;
    Result result{std::vector<float>(static_cast<std::size_t>(count * p.size)),
                  std::vector<float>(static_cast<std::size_t>(count))};
    EstimatedCausalInferenceParams params;
    params.activation = {p.activation.data() + first * p.size, DType::f32, count, p.size, p.size, 1};
    params.context = {p.context.data(), DType::f32, p.contexts, p.size, p.size, 1};
    params.relevance = {p.relevance.data() + first * p.contexts, DType::f32, count, p.contexts, p.contexts, 1};
    params.causal = result.causal.data();
    params.scale = result.scale.data();
    estimated_causal_inference(&params, 1, threads);
    return result;
}

void check_target(const Problem& p, const Result& result, std::int64_t t) {
    std::vector<double> interference(static_cast<std::size_t>(p.size));
    double denominator = 1e-8;
    for (std::int64_t k = 0; k < p.contexts; ++k) {
        const double r = static_cast<double>(p.relevance[static_cast<std::size_t>(t * p.contexts + k)]);
        denominator += r;
        for (std::int64_t n = 0; n < p.size; ++n) {
            interference[static_cast<std::size_t>(n)] +=
                r * static_cast<double>(p.context[static_cast<std::size_t>(k * p.size + n)]);
        }
    }
    double dot = 0.0;
    double square = 0.0;
    double largest = 1e-300;
    for (std::int64_t n = 0; n < p.size; ++n) {
        const double a = static_cast<double>(p.activation[static_cast<std::size_t>(t * p.size + n)]);
        double& e = interference[static_cast<std::size_t>(n)];
        e /= denominator;
        dot += a * e;
        square += e * e;
        largest = std::max(largest, a);
    }
    const double scale = square == 0.0 ? 0.0 : dot / square;
    check_near(static_cast<double>(result.scale[static_cast<std::size_t>(t)]), scale, 1e-6 * std::fabs(scale), "scale");
    for (std::int64_t n = 0; n < p.size; ++n) {
        const double a = static_cast<double>(p.activation[static_cast<std::size_t>(t * p.size + n)]);
        const double expected = std::max(a - scale * interference[static_cast<std::size_t>(n)], 0.0);
        check_near(static_cast<double>(result.causal[static_cast<std::size_t>(t * p.size + n)]) / largest,
                   expected / largest, 1e-6, "causal map");
    }
}

void test_oracle_and_bits() {
    std::mt19937 random(1);
    const std::int64_t shapes[][3] = {{1, 1, 1},   {1, 0, 5}, {3, 2, 7},  {9, 70, 33},   {33, 200, 129},
                                      {8, 65, 16}, {0, 3, 4}, {5, 64, 0}, {143, 70, 50}, {127, 130, 101}};
    for (const auto& shape : shapes) {
        const Problem problem = random_problem(shape[0], shape[1], shape[2], random);
        Result serial;
        for_each_isa([&](const std::string& isa) {
            const Result result = run(problem, 1);
            if (isa == "serial") {
                serial = result;
                for (std::int64_t t = 0; t < problem.targets; ++t) {
                    check_target(problem, result, t);
                }
            }
            check(same_bits(result.causal, serial.causal) && same_bits(result.scale, serial.scale), "bits of " + isa);
            const Result threaded = run(problem, 4);
            check(same_bits(threaded.causal, serial.causal), "threads, " + isa);
            for (std::int64_t t = 0; t < problem.targets; ++t) {
                const Result alone = run(problem, 1, t, 1);
                check(std::equal(alone.causal.begin(), alone.causal.end(), serial.causal.begin() + t * problem.size) &&
                          alone.scale[0] == serial.scale[static_cast<std::size_t>(t)],
                      "a target alone, " + isa);
            }
        });
    }
}

void test_special_values() {
    std::mt19937 random(2);
    const Problem clean = random_problem(21, 90, 50, random);
    Problem problem = clean;
    problem.context[7 * 50 + 3] = std::numeric_limits<float>::quiet_NaN();
    problem.context[80 * 50 + 4] = std::numeric_limits<float>::infinity();
    for_each_isa([&](const std::string& isa) {
        const Result expected = run(clean, 1);
        const Result result = run(problem, 2);
        for (std::int64_t t = 0; t < problem.targets; ++t) {
            const std::size_t row = static_cast<std::size_t>(t * 90);
            const bool hit = problem.relevance[row + 7] != 0.0f || problem.relevance[row + 80] != 0.0f;
            check(std::isnan(result.scale[static_cast<std::size_t>(t)]) == hit, "NaN reaches the scale, " + isa);
            for (std::int64_t n = 0; n < problem.size; ++n) {
                const std::size_t at = static_cast<std::size_t>(t * 50 + n);
                check(hit ? std::isnan(result.causal[at]) : result.causal[at] == expected.causal[at],
                      "NaN reaches the map, " + isa);
            }
        }
    });
}

void test_least_squares_scale() {
    std::mt19937 random(3);
    for (const std::int64_t size : {0, 1, 2, 15, 16, 17, 33, 1296}) {
        const std::vector<float> target = random_values(3 * size, random);
        const std::vector<float> interference = random_values(3 * size, random);
        std::vector<float> serial;
        for_each_isa([&](const std::string& isa) {
            std::vector<float> scale(3, -1.0f);
            LeastSquaresScaleParams params;
            params.target = target.data();
            params.interference = interference.data();
            params.leading_dims = 1;
            params.leading_sizes[0] = 3;
            params.target_leading_strides[0] = size;
            params.interference_leading_strides[0] = size;
            params.size = size;
            params.scale = scale.data();
            least_squares_scale(&params, 1, 2);
            serial = serial.empty() ? scale : serial;
            check(same_bits(scale, serial), "least squares, bits of " + isa);
            for (std::int64_t row = 0; row < 3; ++row) {
                double dot = 0.0;
                double square = 0.0;
                for (std::int64_t n = row * size; n < (row + 1) * size; ++n) {
                    const double e = static_cast<double>(interference[static_cast<std::size_t>(n)]);
                    dot += static_cast<double>(target[static_cast<std::size_t>(n)]) * e;
                    square += e * e;
                }
                const double expected = square == 0.0 ? 0.0 : dot / square;
                check_near(static_cast<double>(scale[static_cast<std::size_t>(row)]), expected, 1e-7 * expected,
                           "least squares");
            }
        });
    }
}

}  // namespace

int main() {
    test_oracle_and_bits();
    test_special_values();
    test_least_squares_scale();
    return finish();
}
