#include "tam_fast/token_scores.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "rows_kernels.h"
#include "scratch.h"
#include "token_scores_kernels.h"

namespace tam::cpu {
namespace {

constexpr const TokenScoresKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(token_scores);

// A task is a block of positions times a block of tokens; both sides then stay in the second-level cache.
constexpr std::int64_t kBlockPositions = 32;
constexpr std::int64_t kBlockTokens = 128;

struct Item {
    const TokenScoresParams& params;
    std::int64_t position_blocks;
    std::int64_t token_blocks;
    std::int64_t first_task;
    std::vector<const float*> classifier;  // rows of the tokens, in float32
    std::vector<float> converted;          // where they are not that already
};

std::int64_t divide_up(std::int64_t value, std::int64_t by) {
    return (value + by - 1) / by;
}

}  // namespace
}  // namespace tam::cpu

namespace tam {

void token_scores(const TokenScoresParams* params, std::int64_t count, int threads) {
    using namespace cpu;
    const RowsKernels& rows = rows_kernels();
    const TokenScoresKernels& kernels = select_kernels(kKernels);
    std::vector<Item> items;
    items.reserve(static_cast<std::size_t>(count));
    std::int64_t tasks = 0;
    double cost = 0.0;
    for (std::int64_t i = 0; i < count; ++i) {
        const TokenScoresParams& p = params[i];
        const std::int64_t tokens = p.token_ids.size;
        Item item{p, divide_up(p.hidden.rows, kBlockPositions), divide_up(tokens, kBlockTokens), tasks, {}, {}};
        const std::int64_t channels = p.hidden.cols;
        item.classifier.resize(static_cast<std::size_t>(tokens));
        if (!is_plain_f32(p.classifier)) {
            item.converted.resize(static_cast<std::size_t>(tokens * channels));
        }
        tasks += item.position_blocks * item.token_blocks;
        cost += 0.02 * static_cast<double>(tokens) * static_cast<double>(p.hidden.rows) * static_cast<double>(channels);
        items.push_back(std::move(item));
    }
    const int workers = worthwhile_threads(cost, threads);
    for (Item& item : items) {
        const IndexView& ids = item.params.token_ids;
        const std::int64_t channels = item.params.classifier.cols;
        parallel_for(divide_up(ids.size, kBlockTokens), workers, [&](std::int64_t block) {
            const std::int64_t last = std::min(ids.size, (block + 1) * kBlockTokens);
            for (std::int64_t t = block * kBlockTokens; t < last; ++t) {
                float* const buffer = item.converted.empty() ? nullptr : item.converted.data() + t * channels;
                item.classifier[static_cast<std::size_t>(t)] =
                    row_f32(rows, item.params.classifier, ids.data[t * ids.stride], buffer);
            }
        });
    }
    parallel_for(tasks, workers, [&](std::int64_t task) {
        const Item& item =
            *std::prev(std::upper_bound(items.begin(), items.end(), task,
                                        [](std::int64_t index, const Item& other) { return index < other.first_task; }));
        const TokenScoresParams& p = item.params;
        const std::int64_t position = (task - item.first_task) % item.position_blocks * kBlockPositions;
        const std::int64_t token = (task - item.first_task) / item.position_blocks * kBlockTokens;
        const std::int64_t channels = p.hidden.cols;
        const std::int64_t positions = std::min(kBlockPositions, p.hidden.rows - position);
        float* buffer = nullptr;
        if (!is_plain_f32(p.hidden)) {
            buffer = static_cast<float*>(
                scratch(ScratchSlot::rows, static_cast<std::size_t>(positions * channels) * sizeof(float)));
        }
        const float* hidden[kBlockPositions];
        for (std::int64_t i = 0; i < positions; ++i) {
            hidden[i] = row_f32(rows, p.hidden, position + i, buffer == nullptr ? nullptr : buffer + i * channels);
        }
        const std::int64_t tokens = std::min(kBlockTokens, p.token_ids.size - token);
        kernels.scores_f32({hidden, item.classifier.data() + token, positions, tokens, channels,
                            p.scores + token * p.hidden.rows + position, p.hidden.rows});
    });
}

}  // namespace tam
