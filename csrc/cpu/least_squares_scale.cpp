#include "tam_fast/least_squares_scale.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "least_squares_scale_kernels.h"
#include "parallel.h"
#include "rows_kernels.h"
#include "scratch.h"

namespace tam::cpu {
namespace {

constexpr const LeastSquaresScaleKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(least_squares_scale);

std::int64_t row_count(const LeastSquaresScaleParams& params) {
    std::int64_t rows = 1;
    for (int dim = 0; dim < params.leading_dims; ++dim) {
        rows *= params.leading_sizes[dim];
    }
    return rows;
}

const void* row_start(const void* data, DType dtype, const LeastSquaresScaleParams& params, const std::int64_t* strides,
                      std::int64_t row) {
    std::int64_t offset = 0;
    for (int dim = params.leading_dims - 1; dim >= 0; --dim) {
        offset += row % params.leading_sizes[dim] * strides[dim];
        row /= params.leading_sizes[dim];
    }
    const std::int64_t bytes = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
    return static_cast<const char*>(data) + offset * bytes;
}

// Multiplies a row by the power of two that brings its largest finite magnitude to [1, 2); returns that power.
int bring_to_one(double* row, std::int64_t size) {
    double largest = 0.0;
    for (std::int64_t i = 0; i < size; ++i) {
        if (std::isfinite(row[i])) {
            largest = std::max(largest, std::fabs(row[i]));
        }
    }
    const int power = largest == 0.0 ? 0 : -std::ilogb(largest);
    for (std::int64_t i = 0; i < size; ++i) {
        row[i] = std::ldexp(row[i], power);
    }
    return power;
}

double scale_of_row(const RowsKernels& rows, const LeastSquaresScaleKernels& kernels, const LeastSquaresScaleParams& params,
                    std::int64_t row) {
    const void* const target = row_start(params.target, params.target_dtype, params, params.target_leading_strides, row);
    const void* const interference =
        row_start(params.interference, params.interference_dtype, params, params.interference_leading_strides, row);
    const std::size_t size = static_cast<std::size_t>(params.size);
    if (params.target_dtype == DType::f64 || params.interference_dtype == DType::f64) {
        double* const buffer = static_cast<double*>(scratch(ScratchSlot::rows, 2 * size * sizeof(double)));
        rows.load_f64(params.target_dtype, target, params.target_stride, params.size, buffer);
        rows.load_f64(params.interference_dtype, interference, params.interference_stride, params.size, buffer + size);
        // Squares of float64 can leave its range.
        const int target_power = bring_to_one(buffer, params.size);
        const int interference_power = bring_to_one(buffer + size, params.size);
        return std::ldexp(kernels.scale_f64(buffer, buffer + size, params.size), interference_power - target_power);
    }
    float* const buffer = static_cast<float*>(scratch(ScratchSlot::rows, 2 * size * sizeof(float)));
    const MatrixView target_row{target, params.target_dtype, 1, params.size, 0, params.target_stride};
    const MatrixView interference_row{
        interference, params.interference_dtype, 1, params.size, 0, params.interference_stride};
    return kernels.scale_f32(row_f32(rows, target_row, 0, buffer), row_f32(rows, interference_row, 0, buffer + size),
                             params.size);
}

}  // namespace
}  // namespace tam::cpu

namespace tam {

void least_squares_scale(const LeastSquaresScaleParams* items, std::int64_t count, int threads) {
    using namespace cpu;
    const RowsKernels& rows = rows_kernels();
    const LeastSquaresScaleKernels& kernels = select_kernels(kKernels);
    std::vector<std::int64_t> first;
    std::int64_t total = 0;
    double cost = 0.0;
    for (std::int64_t i = 0; i < count; ++i) {
        first.push_back(total);
        total += row_count(items[i]);
        cost += 0.25 * static_cast<double>(row_count(items[i])) * static_cast<double>(items[i].size);
    }
    // Rows are handed out in blocks: a single one may be too little work for a task.
    constexpr std::int64_t kRowsPerTask = 8;
    parallel_for((total + kRowsPerTask - 1) / kRowsPerTask, worthwhile_threads(cost, threads), [&](std::int64_t task) {
        for (std::int64_t i = task * kRowsPerTask; i < std::min(total, (task + 1) * kRowsPerTask); ++i) {
            const auto item = std::upper_bound(first.begin(), first.end(), i) - first.begin() - 1;
            const std::int64_t row = i - first[static_cast<std::size_t>(item)];
            items[item].scale[row] = static_cast<float>(scale_of_row(rows, kernels, items[item], row));
        }
    });
}

}  // namespace tam
