// Dot products of hidden states and classifier rows, for one instruction set.
//
// Every product is summed over 16 fixed partial lanes (channel c goes to lane c mod 16, in order, fused) which are then
// added in a fixed tree: the bits depend neither on the vector width nor on how the outputs are tiled.

#include "token_scores_kernels.h"

namespace tam::cpu::TAM_ISA {
namespace {

constexpr int kPartialLanes = 16;
constexpr int kParts = kPartialLanes / kLanes;  // vectors that make up the partial lanes
constexpr int kTile = kLanes == 16 ? 4 : 2;     // outputs per side that fit the registers

struct Partial {
    f32v part[kParts];
};

TAM_INLINE float relu_sum(const Partial& partial) {
    float lanes[kPartialLanes];
    std::memcpy(lanes, &partial, sizeof lanes);
    for (int half = kPartialLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    const float sum = lanes[0];
    return sum > 0 ? sum : sum <= 0 ? 0.0f : __builtin_nanf("");
}

template <int Positions, int Tokens>
TAM_INLINE void score_tile(const ScoreBlock& block, std::int64_t position, std::int64_t token) {
    const float* hidden[Positions];
    const float* classifier[Tokens];
    for (int p = 0; p < Positions; ++p) {
        hidden[p] = block.hidden[position + p];
    }
    for (int t = 0; t < Tokens; ++t) {
        classifier[t] = block.classifier[token + t];
    }
    Partial sums[Positions][Tokens] = {};
    const auto accumulate = [&](const float* const* states, const float* const* rows, std::int64_t channel) {
        Partial weights[Tokens];
        TAM_UNROLL
        for (int t = 0; t < Tokens; ++t) {
            TAM_UNROLL
            for (int part = 0; part < kParts; ++part) {
                weights[t].part[part] = load<f32v>(rows[t] + channel + part * kLanes);
            }
        }
        TAM_UNROLL
        for (int p = 0; p < Positions; ++p) {
            TAM_UNROLL
            for (int part = 0; part < kParts; ++part) {
                const f32v state = load<f32v>(states[p] + channel + part * kLanes);
                TAM_UNROLL
                for (int t = 0; t < Tokens; ++t) {
                    sums[p][t].part[part] = fma(state, weights[t].part[part], sums[p][t].part[part]);
                }
            }
        }
    };
    const std::int64_t whole = block.channels / kPartialLanes * kPartialLanes;
    for (std::int64_t channel = 0; channel < whole; channel += kPartialLanes) {
        accumulate(hidden, classifier, channel);
    }
    if (whole < block.channels) {
        const std::size_t bytes = static_cast<std::size_t>(block.channels - whole) * sizeof(float);
        float hidden_tail[Positions][kPartialLanes] = {};
        float classifier_tail[Tokens][kPartialLanes] = {};
        const float* hidden_rows[Positions];
        const float* classifier_rows[Tokens];
        for (int p = 0; p < Positions; ++p) {
            std::memcpy(hidden_tail[p], hidden[p] + whole, bytes);
            hidden_rows[p] = hidden_tail[p];
        }
        for (int t = 0; t < Tokens; ++t) {
            std::memcpy(classifier_tail[t], classifier[t] + whole, bytes);
            classifier_rows[t] = classifier_tail[t];
        }
        accumulate(hidden_rows, classifier_rows, 0);
    }
    for (int t = 0; t < Tokens; ++t) {
        for (int p = 0; p < Positions; ++p) {
            block.scores[(token + t) * block.stride + position + p] = relu_sum(sums[p][t]);
        }
    }
}

void TAM_NAME(token_scores_f32)(const ScoreBlock& block) {
    std::int64_t token = 0;
    for (; token + kTile <= block.tokens; token += kTile) {
        std::int64_t position = 0;
        for (; position + kTile <= block.positions; position += kTile) {
            score_tile<kTile, kTile>(block, position, token);
        }
        for (; position < block.positions; ++position) {
            score_tile<1, kTile>(block, position, token);
        }
    }
    for (; token < block.tokens; ++token) {
        std::int64_t position = 0;
        for (; position + kTile <= block.positions; position += kTile) {
            score_tile<kTile, 1>(block, position, token);
        }
        for (; position < block.positions; ++position) {
            score_tile<1, 1>(block, position, token);
        }
    }
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
