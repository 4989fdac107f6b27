#include "tam_fast/token_scores.h"

#include <cmath>
#include <limits>

#include "check.h"

namespace {

using namespace tam;
using namespace tam::test;

struct Problem {
    std::int64_t positions;
    std::int64_t channels;
    std::vector<float> hidden;
    std::vector<float> classifier;
    std::vector<std::int64_t> ids;

    TokenScoresParams params(std::vector<float>& scores) const {
        scores.assign(ids.size() * static_cast<std::size_t>(positions), -1.0f);
        TokenScoresParams result;
        result.hidden = {hidden.data(), DType::f32, positions, channels, channels, 1};
        const std::int64_t vocabulary = channels == 0 ? 100 : static_cast<std::int64_t>(classifier.size()) / channels;
        result.classifier = {classifier.data(), DType::f32, vocabulary, channels, channels, 1};
        result.token_ids = {ids.data(), static_cast<std::int64_t>(ids.size()), 1};
        result.scores = scores.data();
        return result;
    }
};

// The definition, bit for bit: 16 partial lanes of fused multiply-adds, then halves onto halves.
float score(const float* hidden, const float* weights, std::int64_t channels) {
    float lanes[16] = {};
    for (std::int64_t c = 0; c < (channels + 15) / 16 * 16; ++c) {
        const float state = c < channels ? hidden[c] : 0.0f;
        const float weight = c < channels ? weights[c] : 0.0f;
        lanes[c % 16] = std::fma(state, weight, lanes[c % 16]);
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return lanes[0] > 0.0f ? lanes[0] : lanes[0] <= 0.0f ? 0.0f : std::numeric_limits<float>::quiet_NaN();
}

// Values whose products and sums hit rounding ties, cancellation, denormals and both infinities now and then.
std::vector<float> awkward_values(std::int64_t size, std::mt19937& random, bool extreme) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) {
        const int exponent = extreme ? static_cast<int>(random() % 140) - 90 : static_cast<int>(random() % 8) - 4;
        const std::uint32_t digits = random() % 3 == 0 ? random() % 16 : random() % (1u << 24);
        value = std::ldexp(static_cast<float>(digits), exponent - 24) * (random() % 2 == 0 ? 1.0f : -1.0f);
    }
    return values;
}

void test_bits() {
    std::mt19937 random(1);
    for (const bool extreme : {false, true}) {
        for (const std::int64_t channels : {1, 2, 7, 15, 16, 17, 33, 64, 100, 1536}) {
            for (const std::int64_t positions : {1, 3, 4, 5, 33, 51}) {
                Problem problem{positions,
                                channels,
                                awkward_values(positions * channels, random, extreme),
                                awkward_values(40 * channels, random, extreme),
                                {}};
                for (int t = 0; t < (positions == 33 ? 130 : positions == 51 ? 8 : 6); ++t) {
                    problem.ids.push_back(static_cast<std::int64_t>(random() % 40));
                }
                for_each_isa([&](const std::string& isa) {
                    std::vector<float> scores;
                    const TokenScoresParams params = problem.params(scores);
                    token_scores(&params, 1, 3);
                    bool equal = true;
                    for (std::size_t t = 0; t < problem.ids.size(); ++t) {
                        for (std::int64_t s = 0; s < positions; ++s) {
                            const float expected =
                                score(&problem.hidden[static_cast<std::size_t>(s * channels)],
                                      &problem.classifier[static_cast<std::size_t>(problem.ids[t] * channels)], channels);
                            const float got = scores[t * static_cast<std::size_t>(positions) + static_cast<std::size_t>(s)];
                            equal = equal && std::memcmp(&expected, &got, sizeof got) == 0;
                        }
                    }
                    check(equal, "C=" + std::to_string(channels) + " S=" + std::to_string(positions) + " " + isa);
                });
            }
        }
    }
}

void test_special_values() {
    Problem problem{3, 20, std::vector<float>(60, 1.0f), std::vector<float>(20, -1.0f), {0}};
    problem.hidden[25] = std::numeric_limits<float>::quiet_NaN();
    problem.hidden[45] = -std::numeric_limits<float>::infinity();
    for_each_isa([&](const std::string& isa) {
        std::vector<float> scores;
        const TokenScoresParams params = problem.params(scores);
        token_scores(&params, 1, 1);
        check(scores[0] == 0.0f && std::isnan(scores[1]) && std::isinf(scores[2]), "special values " + isa);
    });
}

void test_storage_types() {
    // Small integers are exact in every type.
    const std::vector<std::uint16_t> half = {0x3c00, 0x4000, 0x4200, 0xbc00};  // 1, 2, 3, -1
    const std::vector<std::uint16_t> bfloat = {0x3f80, 0x4000, 0x4040, 0xbf80};
    const std::vector<double> wide = {1.0, 2.0, 3.0, -1.0};
    const std::int64_t id = 0;
    for_each_isa([&](const std::string& isa) {
        const void* const data[] = {half.data(), bfloat.data(), wide.data()};
        const DType types[] = {DType::f16, DType::bf16, DType::f64};
        for (const int a : {0, 1, 2}) {
            for (const int b : {0, 1, 2}) {
                float result = 0.0f;
                TokenScoresParams params;
                params.hidden = {data[a], types[a], 1, 4, 4, 1};
                params.classifier = {data[b], types[b], 1, 4, 4, 1};
                params.token_ids = {&id, 1, 1};
                params.scores = &result;
                token_scores(&params, 1, 1);
                check(result == 15.0f, "storage types " + isa);
            }
        }
    });
}

// One or two tokens read 16-bit rows as they are, more of them a float32 copy: same bits.
void test_few_columns_of_16_bits() {
    std::mt19937 random(2);
    for (const DType dtype : {DType::f16, DType::bf16}) {
        for (const std::int64_t channels : {16, 48, 1536, 1540}) {
            for (const std::int64_t positions : {1, 3, 4, 5, 51}) {
                const std::int64_t stride = channels + 3;
                std::vector<std::uint16_t> hidden(static_cast<std::size_t>(positions * stride));
                for (std::uint16_t& pattern : hidden) {
                    const auto exponent =
                        static_cast<std::uint16_t>(dtype == DType::f16 ? random() % 20 : 120 + random() % 9);
                    pattern = static_cast<std::uint16_t>((random() % 2 << 15) |
                                                         (exponent << (dtype == DType::f16 ? 10 : 7)) | random() % 128);
                }
                const std::vector<float> classifier = awkward_values(8 * channels, random, false);
                const std::vector<std::int64_t> ids = {5, 0, 7};
                for_each_isa([&](const std::string& isa) {
                    std::vector<float> scores[3];
                    for (const std::size_t count : {1, 2, 3}) {
                        scores[count - 1].assign(count * static_cast<std::size_t>(positions), -1.0f);
                        TokenScoresParams params;
                        params.hidden = {hidden.data(), dtype, positions, channels, stride, 1};
                        params.classifier = {classifier.data(), DType::f32, 8, channels, channels, 1};
                        params.token_ids = {ids.data(), static_cast<std::int64_t>(count), 1};
                        params.scores = scores[count - 1].data();
                        token_scores(&params, 1, 2);
                    }
                    for (const std::size_t count : {1, 2}) {
                        check(std::memcmp(scores[count - 1].data(), scores[2].data(), scores[count - 1].size() * 4) == 0,
                              "few columns C=" + std::to_string(channels) + " S=" + std::to_string(positions) + " " + isa);
                    }
                });
            }
        }
    }
}

void test_empty() {
    for (const auto& sizes : {std::pair<int, int>{0, 5}, {4, 0}}) {
        Problem problem{sizes.first, sizes.second, std::vector<float>(20), std::vector<float>(500), {0, 1}};
        std::vector<float> scores;
        const TokenScoresParams params = problem.params(scores);
        token_scores(&params, 1, 2);
        check(scores == std::vector<float>(static_cast<std::size_t>(2 * sizes.first), 0.0f), "empty sides");
    }
}

}  // namespace

int main() {
    test_bits();
    test_special_values();
    test_storage_types();
    test_few_columns_of_16_bits();
    test_empty();
    return finish();
}
