#include "tam_fast/finish_maps.h"

#include <algorithm>

#include "context_rows.h"
#include "dispatch.h"
#include "estimated_causal_inference_kernels.h"
#include "finish_maps_kernels.h"
#include "rank_gaussian_filter_kernels.h"
#include "scratch.h"

namespace tam::cpu {
namespace {

constexpr const FinishMapsKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(finish_maps);

struct Kernels {
    const RowsKernels& rows;
    const EstimatedCausalInferenceKernels& inference;
    const FinishMapsKernels& finish;
    const RankGaussianFilterKernels& filter;
};

// Filters `count` normalised rows, `pitch` apart, grid after grid, into the output.
void filter_grids(const FinishMapsParams& params, const Kernels& kernels, const float* rows, std::int64_t pitch,
                  std::int64_t count, float* output) {
    const std::int64_t size = params.scores.cols;
    if (params.kernel_size == 1) {
        for (std::int64_t i = 0; i < count; ++i) {
            std::copy(rows + i * pitch, rows + i * pitch + size, output + i * size);
        }
        return;
    }
    std::int64_t begin = 0;
    for (std::int64_t g = 0; g < params.grid_count; ++g) {
        const GridSize& grid = params.grids[g];
        // Of several grids the maps of one do not follow one another in the output.
        const std::int64_t together = params.grid_count == 1 ? maps_together(grid.height, grid.width) : 1;
        for (std::int64_t first = 0; first < count; first += together) {
            FilterMap maps[kMostMaps];
            const std::int64_t some = std::min(together, count - first);
            for (std::int64_t i = 0; i < some; ++i) {
                maps[i].input = rows + (first + i) * pitch + begin;
                maps[i].output = output + (first + i) * size + begin;
                maps[i].height = grid.height;
                maps[i].width = grid.width;
                maps[i].row_stride = grid.width;
            }
            filter_maps(kernels.filter, maps, static_cast<int>(some), params.kernel_size, params.constant_window_nan);
        }
        begin += grid.height * grid.width;
    }
}

struct Item {
    const FinishMapsParams& params;
    ContextRows context;
    std::int64_t step = 1;  // targets per task

    explicit Item(const FinishMapsParams& p) : params(p), context(p.scores, p.context_rows, p.relevance.cols) {}

    std::int64_t targets() const { return params.relevance.rows; }
    std::int64_t size() const { return params.scores.cols; }
    double cost() const {
        return 0.02 * static_cast<double>(targets()) * static_cast<double>(params.relevance.cols + 60) *
               static_cast<double>(size());
    }
    std::int64_t tasks() const { return (targets() + step - 1) / step; }
};

void finish(const Item& item, const Kernels& kernels, std::int64_t task) {
    const FinishMapsParams& params = item.params;
    const std::int64_t contexts = params.relevance.cols;
    const std::int64_t size = item.size();
    const std::int64_t text_size = params.text_relevance.cols;
    const std::int64_t pitch = work_pitch(size);
    const std::int64_t first = task * item.step;
    const std::int64_t count = std::min(item.step, item.targets() - first);
    float* const work =
        static_cast<float*>(scratch(ScratchSlot::interference, static_cast<std::size_t>(count * pitch) * sizeof(float)));
    float* const buffers = static_cast<float*>(
        scratch(ScratchSlot::rows, static_cast<std::size_t>(count * (size + contexts + text_size)) * sizeof(float)));
    float* const relevance_buffers = buffers + count * size;
    float* const text_buffers = relevance_buffers + count * contexts;
    const float* activation[kMaxInterferenceRows];
    const float* relevance[kMaxInterferenceRows];
    for (std::int64_t i = 0; i < count; ++i) {
        activation[i] =
            row_f32(kernels.rows, params.scores, index_at(params.activation_rows, first + i), buffers + i * size);
        relevance[i] = row_f32(kernels.rows, params.relevance, first + i, relevance_buffers + i * contexts);
    }
    kernels.inference.infer_f32(
        {activation, relevance, item.context.rows(), count, contexts, size, work, pitch, work, pitch, params.scale + first});
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t t = first + i;
        const float* const text = row_f32(kernels.rows, params.text_relevance, t, text_buffers + i * text_size);
        const std::int64_t length = params.text_length.data == nullptr ? text_size : index_at(params.text_length, t);
        const bool flat =
            kernels.finish.normalise_f32(work + i * pitch, size, text, length, text_size, params.text + t * text_size);
        params.flat[t] = flat ? 1 : 0;
    }
    filter_grids(params, kernels, work, pitch, count, params.maps + first * size);
}

}  // namespace
}  // namespace tam::cpu

namespace tam {

void finish_maps(const FinishMapsParams* params, std::int64_t count, int threads) {
    using namespace cpu;
    const Kernels kernels{rows_kernels(), estimated_causal_inference_kernels(), select_kernels(kKernels),
                          rank_gaussian_filter_kernels()};
    for_targets_of_all<Item>(params, count, threads, kernels.rows,
                             [&](const Item& item, std::int64_t task) { finish(item, kernels, task); });
}

}  // namespace tam
