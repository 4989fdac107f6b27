#include "tam_fast/token_scores.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "parallel_items.h"
#include "rows_kernels.h"
#include "scratch.h"
#include "token_scores_kernels.h"

namespace tam::cpu {
namespace {

constexpr const TokenScoresKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(token_scores);

struct AlignedDelete {
    void operator()(float* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

std::int64_t divide_up(std::int64_t value, std::int64_t by) {
    return (value + by - 1) / by;
}

// One side of the product: all hidden states, or the classifier rows of the tokens.
struct Side {
    const MatrixView* matrix;
    const IndexView* index;  // null: every row, in order
    std::int64_t count;
    std::int64_t score_stride;

    const void* start(std::int64_t i) const {
        return element_of(*matrix, index == nullptr ? i : index->data[i * index->stride], 0);
    }

    // Whether vectors are contiguous 16-bit floats of whole groups of channels.
    bool is_plain_16bit(std::int64_t channels) const {
        return (matrix->dtype == DType::f16 || matrix->dtype == DType::bf16) && matrix->col_stride == 1 &&
               matrix->cols == channels;
    }

    // Vector i as contiguous float32, padded with zeros to whole groups of channels; in `buffer` unless it is that already.
    const float* vector(const RowsKernels& kernels, std::int64_t i, std::int64_t channels, float* buffer) const {
        if (channels == matrix->cols && is_plain_f32(*matrix)) {
            return static_cast<const float*>(start(i));
        }
        kernels.load_f32(matrix->dtype, start(i), matrix->col_stride, matrix->cols, buffer);
        std::fill(buffer + matrix->cols, buffer + channels, 0.0f);
        return buffer;
    }
};

class Item {
  public:
    explicit Item(const TokenScoresParams& p)
        : rows_{&p.hidden, nullptr, p.hidden.rows, 1},
          columns_{&p.classifier, &p.token_ids, p.token_ids.size, p.hidden.rows},
          scores_(p.scores),
          channels_(std::max<std::int64_t>(divide_up(p.hidden.cols, kChannelGroup), 1) * kChannelGroup) {
        if (rows_.count < columns_.count) {
            std::swap(rows_, columns_);  // the smaller side goes into panels
        }
        panels_.reset(static_cast<float*>(
            ::operator new(static_cast<std::size_t>(columns_.count * channels_) * sizeof(float), std::align_val_t(64))));
        constexpr std::int64_t kCacheBytes = 512 * 1024;
        const std::int64_t fitting = kCacheBytes / (channels_ * static_cast<std::int64_t>(sizeof(float)));
        block_rows_ = std::clamp<std::int64_t>(fitting / 4 * 4, 12, kMaxScoreRows);
        constexpr std::int64_t kMostPanels = 24;
        const std::int64_t column_blocks = divide_up(panels(), kMostPanels);
        block_columns_ = column_blocks == 0 ? 1 : divide_up(panels(), column_blocks) * kPanelWidth;
    }

    double multiplications() const {
        return static_cast<double>(rows_.count) * static_cast<double>(columns_.count) * static_cast<double>(channels_);
    }
    std::int64_t panels() const { return divide_up(columns_.count, kPanelWidth); }
    std::int64_t blocks() const { return row_blocks() * divide_up(columns_.count, block_columns_); }

    void pack(const RowsKernels& kernels, std::int64_t panel) const {
        const std::int64_t first = panel * kPanelWidth;
        const std::int64_t width = std::min<std::int64_t>(kPanelWidth, columns_.count - first);
        float* const buffer =
            static_cast<float*>(scratch(ScratchSlot::rows, static_cast<std::size_t>(width * channels_) * sizeof(float)));
        const float* from[kPanelWidth];
        for (std::int64_t i = 0; i < width; ++i) {
            from[i] = columns_.vector(kernels, first + i, channels_, buffer + i * channels_);
        }
        float* to = panels_.get() + first * channels_;
        for (std::int64_t channel = 0; channel < channels_; channel += kChannelGroup) {
            for (std::int64_t i = 0; i < width; ++i) {
                std::memcpy(to, from[i] + channel, kChannelGroup * sizeof(float));
                to += kChannelGroup;
            }
        }
    }

    void score(const RowsKernels& kernels, const TokenScoresKernels& score_kernels, std::int64_t block) const {
        const std::int64_t first_row = block % row_blocks() * block_rows_;
        const std::int64_t first_column = block / row_blocks() * block_columns_;
        const std::int64_t count = std::min(block_rows_, rows_.count - first_row);
        const void* rows[kMaxScoreRows];
        auto* scores = score_kernels.scores_f32;
        if (columns_.count <= kFewColumns && rows_.is_plain_16bit(channels_)) {
            // Each value is read once or twice: to write it down as float32 first would be most of the work.
            scores = rows_.matrix->dtype == DType::f16 ? score_kernels.few_scores_f16 : score_kernels.few_scores_bf16;
            for (std::int64_t i = 0; i < count; ++i) {
                rows[i] = rows_.start(first_row + i);
            }
        } else {
            float* const buffer =
                static_cast<float*>(scratch(ScratchSlot::rows, static_cast<std::size_t>(count * channels_) * sizeof(float)));
            for (std::int64_t i = 0; i < count; ++i) {
                rows[i] = rows_.vector(kernels, first_row + i, channels_, buffer + i * channels_);
            }
        }
        scores({rows, count, panels_.get() + first_column * channels_,
                std::min(block_columns_, columns_.count - first_column), channels_ / kChannelGroup,
                scores_ + first_row * rows_.score_stride + first_column * columns_.score_stride, rows_.score_stride,
                columns_.score_stride});
    }

  private:
    std::int64_t row_blocks() const { return divide_up(rows_.count, block_rows_); }

    Side rows_;
    Side columns_;
    float* scores_;
    std::int64_t channels_;  // padded
    std::int64_t block_rows_;
    std::int64_t block_columns_;
    std::unique_ptr<float, AlignedDelete> panels_;
};

}  // namespace
}  // namespace tam::cpu

namespace tam {

void token_scores(const TokenScoresParams* params, std::int64_t count, int threads) {
    using namespace cpu;
    const RowsKernels& rows = rows_kernels();
    const TokenScoresKernels& kernels = select_kernels(kKernels);
    std::vector<Item> items;
    items.reserve(static_cast<std::size_t>(count));
    double cost = 0.0;
    for (std::int64_t i = 0; i < count; ++i) {
        items.emplace_back(params[i]);
        cost += 0.02 * items.back().multiplications();
    }
    const int workers = worthwhile_threads(cost, threads);
    parallel_for_items(
        items, workers, [](const Item& item) { return item.panels(); },
        [&](const Item& item, std::int64_t panel) { item.pack(rows, panel); });
    parallel_for_items(
        items, workers, [](const Item& item) { return item.blocks(); },
        [&](const Item& item, std::int64_t block) { item.score(rows, kernels, block); });
}

}  // namespace tam
