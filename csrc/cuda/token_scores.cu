// Products of gathered hidden states with gathered classifier rows.
//
// A block makes a tile of classes x positions. Rows of both sides come to shared memory in lines of 128 bytes (64 channels
// of a half dtype, 32 of float32), some stages ahead of their use. A line's eight chunks of 16 bytes are permuted by its
// row, so that eight rows' chunks of the same channels lie in different banks.
//
// Tensor cores add in float32 but truncate: sums over one stage are therefore added up by ordinary float32 additions.

#include "tam_fast/cuda/token_scores.h"

#include <algorithm>
#include <cmath>

#include "elements.h"
#include "items.h"
#include "platform.h"

namespace tam::cuda {
namespace {

constexpr int kLineBytes = 128;
constexpr int kChunkBytes = 16;
constexpr int kChunks = kLineBytes / kChunkBytes;

// What is common to the items of a launch.
struct Common {
    MatrixView classifier;
    std::int32_t* flag;
    std::int32_t* arrivals;  // of blocks, by tile
    float4* partial;         // by tile, block of the tile, group of four values, thread
};

TAM_DEVICE int chunk_offset(int row, int chunk) {
    return row * kLineBytes + ((chunk ^ (row & (kChunks - 1))) * kChunkBytes);
}

// Eight half channels of a row from `channel` on, one by one; zeros beyond the last.
TAM_DEVICE uint4 gather_chunk(const MatrixView& matrix, std::int64_t row, std::int64_t channel, std::uint16_t) {
    const std::uint16_t* const from = static_cast<const std::uint16_t*>(matrix.data) + row * matrix.row_stride;
    std::uint32_t words[4] = {};
    TAM_UNROLL
    for (int i = 0; i < 8; ++i) {
        if (channel + i < matrix.cols) {
            const std::uint32_t value = from[(channel + i) * matrix.col_stride];
            words[i / 2] |= value << (i % 2 * 16);
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Four channels as float32.
TAM_DEVICE uint4 gather_chunk(const MatrixView& matrix, std::int64_t row, std::int64_t channel, float) {
    std::uint32_t words[4] = {};
    TAM_UNROLL
    for (int i = 0; i < 4; ++i) {
        if (channel + i < matrix.cols) {
            const std::int64_t index = row * matrix.row_stride + (channel + i) * matrix.col_stride;
            words[i] = float_as_bits(element_as_float(matrix.data, matrix.dtype, index));
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Products of a half dtype by tensor cores. A warp makes 16 Rows classes x 16 Columns positions.
template <class Half, int ClassTile, int PositionTile, int Rows, int Columns>
class HalfProducts {
  public:
    using Word = std::uint16_t;
    static constexpr int kChannels = 64;  // in a line
    static constexpr int kValues = Rows * Columns * 8;
    static constexpr int kThreads = ClassTile / (16 * Rows) * (PositionTile / (16 * Columns)) * 32;

    TAM_DEVICE explicit HalfProducts(int thread) : lane_(thread % 32) {
        constexpr int kWarpRows = ClassTile / (16 * Rows);
        class_ = thread / 32 % kWarpRows * 16 * Rows;
        position_ = thread / 32 / kWarpRows * 16 * Columns;
        class_line_ = class_ + lane_ % 16;
        position_line_ = ClassTile + position_ + lane_ % 8 + lane_ / 16 * 8;
    }

    TAM_DEVICE void add(const unsigned char* stage) {
        float sums[Rows][2 * Columns][4] = {};
        TAM_UNROLL
        for (int step = 0; step < kChunks; step += 2) {
            std::uint32_t classes[Rows][4];
            std::uint32_t positions[Columns][4];
            const unsigned char* const class_chunk = stage + chunk_offset(class_line_, step + lane_ / 16);
            const unsigned char* const position_chunk = stage + chunk_offset(position_line_, step + lane_ / 8 % 2);
            TAM_UNROLL
            for (int row = 0; row < Rows; ++row) {
                load_matrix_x4(classes[row], class_chunk + row * 16 * kLineBytes);
            }
            TAM_UNROLL
            for (int column = 0; column < Columns; ++column) {
                load_matrix_x4(positions[column], position_chunk + column * 16 * kLineBytes);
            }
            TAM_UNROLL
            for (int row = 0; row < Rows; ++row) {
                TAM_UNROLL
                for (int column = 0; column < 2 * Columns; ++column) {
                    const std::uint32_t pair[2] = {positions[column / 2][column % 2 * 2],
                                                   positions[column / 2][column % 2 * 2 + 1]};
                    mma_m16n8k16<Half>(sums[row][column], classes[row], pair);
                }
            }
        }
        TAM_UNROLL
        for (int i = 0; i < kValues; ++i) {
            values[i] += sums[i / (8 * Columns)][i / 4 % (2 * Columns)][i % 4];
        }
    }

    // visit(class, position, value) of all of the thread's values, places within the tile
    template <class Visit>
    TAM_DEVICE void for_each(const Visit& visit) const {
        TAM_UNROLL
        for (int i = 0; i < kValues; ++i) {
            visit(class_ + i / (8 * Columns) * 16 + i / 2 % 2 * 8 + lane_ / 4,
                  position_ + i / 4 % (2 * Columns) * 8 + lane_ % 4 * 2 + i % 2, values[i]);
        }
    }

    float values[kValues] = {};

  private:
    int lane_;
    int class_;
    int position_;
    int class_line_;
    int position_line_;
};

// Products in float32: a thread makes 8 classes x 4 positions, a warp 32 x 32.
template <int ClassTile, int PositionTile>
class FloatProducts {
  public:
    using Word = float;
    static constexpr int kChannels = 32;  // in a line
    static constexpr int kClasses = 8;
    static constexpr int kPositions = 4;
    static constexpr int kValues = kClasses * kPositions;
    static constexpr int kThreads = ClassTile * PositionTile / kValues;

    TAM_DEVICE explicit FloatProducts(int thread) {
        constexpr int kWarpRows = ClassTile / 32;
        class_ = thread / 32 % kWarpRows * 32 + thread % 32 / 8;
        position_ = thread / 32 / kWarpRows * 32 + thread % 8;
    }

    TAM_DEVICE void add(const unsigned char* stage) {
        float sums[kValues] = {};
        TAM_UNROLL
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            float4 classes[kClasses];
            float4 positions[kPositions];
            // Lines 8 apart are permuted alike.
            const unsigned char* const class_chunks[2] = {stage + chunk_offset(class_, chunk),
                                                          stage + chunk_offset(class_ + 4, chunk)};
            const unsigned char* const position_chunk = stage + chunk_offset(ClassTile + position_, chunk);
            TAM_UNROLL
            for (int i = 0; i < kClasses; ++i) {
                classes[i] = *reinterpret_cast<const float4*>(class_chunks[i % 2] + i / 2 * 8 * kLineBytes);
            }
            TAM_UNROLL
            for (int i = 0; i < kPositions; ++i) {
                positions[i] = *reinterpret_cast<const float4*>(position_chunk + i * 8 * kLineBytes);
            }
            TAM_UNROLL
            for (int i = 0; i < kValues; ++i) {
                const float4 a = classes[i / kPositions];
                const float4 b = positions[i % kPositions];
                sums[i] = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sums[i]))));
            }
        }
        TAM_UNROLL
        for (int i = 0; i < kValues; ++i) {
            values[i] += sums[i];
        }
    }

    template <class Visit>
    TAM_DEVICE void for_each(const Visit& visit) const {
        TAM_UNROLL
        for (int i = 0; i < kValues; ++i) {
            visit(class_ + i / kPositions * 4, position_ + i % kPositions * 8, values[i]);
        }
    }

    float values[kValues] = {};

  private:
    int class_;
    int position_;
};

// Adds up the sums of the blocks that share a tile, in their order. True in the block that holds the result: the last to
// arrive.
template <int Threads, int Values>
TAM_DEVICE bool add_partial_sums(float (&values)[Values], std::int32_t* arrivals, float4* partial, std::int32_t tile,
                                 std::int32_t* last) {
    const int thread = static_cast<int>(threadIdx.x);
    float4* const of_tile = partial + static_cast<std::int64_t>(tile) * gridDim.y * (Values / 4 * Threads);
    float4* const own = of_tile + static_cast<std::int64_t>(blockIdx.y) * (Values / 4 * Threads) + thread;
    TAM_UNROLL
    for (int i = 0; i < Values; i += 4) {
        own[i / 4 * Threads] = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
    __threadfence();
    __syncthreads();
    if (thread == 0) {
        *last = atomicAdd(arrivals + tile, 1) == static_cast<std::int32_t>(gridDim.y) - 1;
    }
    __syncthreads();
    if (*last == 0) {
        return false;
    }
    __threadfence();
    TAM_UNROLL
    for (int i = 0; i < Values; ++i) {
        values[i] = 0.0f;
    }
    for (unsigned block = 0; block < gridDim.y; ++block) {
        const float4* const from = of_tile + static_cast<std::int64_t>(block) * (Values / 4 * Threads) + thread;
        TAM_UNROLL
        for (int i = 0; i < Values; i += 4) {
            const float4 sums = from[i / 4 * Threads];
            values[i] += sums.x;
            values[i + 1] += sums.y;
            values[i + 2] += sums.z;
            values[i + 3] += sums.w;
        }
    }
    if (thread == 0) {
        arrivals[tile] = 0;
    }
    return true;
}

// Stages, then which lines are of rows that exist, then whether the block is the last of its tile.
constexpr std::size_t shared_bytes(int lines, int stages) {
    return static_cast<std::size_t>(lines * stages * kLineBytes) +
           static_cast<std::size_t>(lines + 1) * sizeof(std::int32_t);
}

// Aligned: rows of both sides consist of whole, aligned chunks, except for their ends.
template <class Products, int ClassTile, int PositionTile, int Stages, bool Aligned, int Capacity>
TAM_KERNEL void __launch_bounds__(Products::kThreads)
    token_scores_kernel(const __grid_constant__ Items<TokenScoresItem, Capacity> items,
                        const __grid_constant__ Common common) {
    constexpr int kThreads = Products::kThreads;
    constexpr int kLines = ClassTile + PositionTile;
    constexpr int kLinesAtOnce = kThreads / kChunks;
    constexpr int kLinesOfThread = kLines / kLinesAtOnce;
    static_assert(ClassTile % kLinesAtOnce == 0 && PositionTile % kLinesAtOnce == 0, "a pass has lines of one side");

    const int thread = static_cast<int>(threadIdx.x);
    const std::int32_t tile = static_cast<std::int32_t>(blockIdx.x);
    std::int64_t tile_of_item;
    const TokenScoresItem& item = items.of_block(blockIdx.x, tile_of_item);
    const MatrixView& classifier = common.classifier;
    const std::int64_t class_tiles = (item.class_count + ClassTile - 1) / ClassTile;
    const std::int64_t class_begin = tile_of_item % class_tiles * ClassTile;
    const std::int64_t position_begin = tile_of_item / class_tiles * PositionTile;

    unsigned char* const stages = shared_memory();
    std::int32_t* const valid = reinterpret_cast<std::int32_t*>(stages + Stages * kLines * kLineBytes);
    std::int32_t* const last = valid + kLines;

    // The rows whose chunks this thread copies: the same chunk of each. Where there is no such row it is the first, whose
    // products are left out in the end.
    using Word = typename Products::Word;
    constexpr int kElements = kChunkBytes / static_cast<int>(sizeof(Word));  // in a chunk
    const int chunk = thread % kChunks;
    std::int64_t rows[kLinesOfThread];
    const Word* sources[kLinesOfThread];
    TAM_UNROLL
    for (int i = 0; i < kLinesOfThread; ++i) {
        const int line = thread / kChunks + i * kLinesAtOnce;
        const bool of_class = i * kLinesAtOnce < ClassTile;
        const MatrixView& matrix = of_class ? classifier : item.hidden;
        const std::int64_t index = of_class ? class_begin + line : position_begin + line - ClassTile;
        const std::int64_t* const indices = of_class ? item.classes : item.positions;
        std::int64_t row = -1;
        if (index < (of_class ? item.class_count : item.position_count)) {
            row = indices == nullptr ? index : indices[index];
        }
        const bool known = row >= 0 && row < matrix.rows;
        rows[i] = known ? row : 0;
        sources[i] = static_cast<const Word*>(matrix.data) + (rows[i] * matrix.row_stride + chunk * kElements);
        if (chunk == 0) {
            valid[line] = known;
        }
    }

    const std::int64_t channels = classifier.rows == 0 || item.hidden.rows == 0 ? 0 : classifier.cols;
    const std::int64_t lines = (channels + Products::kChannels - 1) / Products::kChannels;
    const std::int64_t line_begin = lines * blockIdx.y / gridDim.y;
    const std::int64_t line_end = lines * (blockIdx.y + 1) / gridDim.y;

    unsigned char* const copies = stages + chunk_offset(thread / kChunks, chunk);
    const auto copy = [&](std::int64_t line, int stage) {
        const std::int64_t begin = line * Products::kChannels;
        const std::int64_t left = (channels - begin - chunk * kElements) * static_cast<std::int64_t>(sizeof(Word));
        const int bytes = static_cast<int>(left < 0 ? 0 : left < kChunkBytes ? left : kChunkBytes);
        unsigned char* const to = copies + stage * (kLines * kLineBytes);
        TAM_UNROLL
        for (int i = 0; i < kLinesOfThread; ++i) {
            unsigned char* const line_to = to + i * kLinesAtOnce * kLineBytes;
            if constexpr (Aligned) {
                copy_async<kChunkBytes>(line_to, sources[i] + begin, bytes);
            } else {
                const MatrixView& matrix = i * kLinesAtOnce < ClassTile ? classifier : item.hidden;
                *reinterpret_cast<uint4*>(line_to) = gather_chunk(matrix, rows[i], begin + chunk * kElements, Word{});
            }
        }
    };

    static_assert(kLinesAtOnce % kChunks == 0, "lines of a thread are permuted alike");
    TAM_UNROLL
    for (int stage = 0; stage < Stages - 1; ++stage) {
        if (line_begin + stage < line_end) {
            copy(line_begin + stage, stage);
        }
        copy_async_commit();
    }
    Products products(thread);
    int stage = 0;
    for (std::int64_t line = line_begin; line < line_end; ++line) {
        copy_async_wait<Stages - 2>();
        __syncthreads();
        if (line + Stages - 1 < line_end) {
            copy(line + Stages - 1, stage == 0 ? Stages - 1 : stage - 1);
        }
        copy_async_commit();
        products.add(stages + stage * (kLines * kLineBytes));
        stage = stage == Stages - 1 ? 0 : stage + 1;
    }
    __syncthreads();  // `valid`, where there are no channels

    if (gridDim.y > 1 && !add_partial_sums<kThreads>(products.values, common.arrivals, common.partial, tile, last)) {
        return;
    }

    bool finite = true;
    products.for_each([&](int class_line, int position_line, float sum) {
        const std::int64_t u = class_begin + class_line;
        const std::int64_t p = position_begin + position_line;
        if (u < item.class_count && p < item.position_count) {
            const bool known = valid[class_line] != 0 && valid[ClassTile + position_line] != 0;
            const float value = known ? sum : bits_as_float(0x7fc00000u);
            finite = finite && fabsf(value) < bits_as_float(0x7f800000u);
            item.scores[u * item.row_stride + p] = value <= 0.0f ? 0.0f : value;
        }
    });
    if (!finite && common.flag != nullptr) {
        *common.flag = 1;
    }
}

constexpr std::int64_t kArrivalBytes = 16384;  // room for as many tiles as are ever split
constexpr std::int64_t kMostSplits = 16;
constexpr std::int64_t kLeastLines = 4;  // of channels, that are worth a block of their own

std::int64_t tiles_of(const TokenScoresItem& item, std::int64_t side) {
    return ((item.class_count + side - 1) / side) * ((item.position_count + side - 1) / side);
}

bool can_split(std::int64_t tiles, std::int64_t side, std::int64_t splits, const TokenScoresWorkspace& workspace) {
    return workspace.data != nullptr && tiles * static_cast<std::int64_t>(sizeof(std::int32_t)) <= kArrivalBytes &&
           kArrivalBytes + tiles * splits * side * side * static_cast<std::int64_t>(sizeof(float)) <= workspace.bytes;
}

// The plan of least estimated time, in clocks: tiles take turns on the multiprocessors, which draw at most 64 bytes a clock
// each and some 28 a clock each when all do. What bounds a tile of halves is its lines' way into shared memory and out of
// it, to every warp that needs them, at a line a clock; with float32 it is the multiplications, some 110 a clock. Blocks
// that share a tile write sums that one of them reads.
TokenScoresPlan make_plan(const TokenScoresItem* items, std::int64_t count, std::int64_t lines, bool halves,
                          const TokenScoresWorkspace& workspace) {
    const double processors = multiprocessor_count();
    TokenScoresPlan best;
    double least = 0.0;
    for (const int side : {64, 128}) {
        if (side == 128 && !halves) {
            break;
        }
        std::int64_t tiles = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            tiles += tiles_of(items[i], side);
        }
        const double values = static_cast<double>(side * side);
        const double line_bytes = 2.0 * side * kLineBytes;
        const double clocks = !halves ? values * 32.0 / 110.0 : side == 64 ? 384.0 : 1024.0;
        const double drawn = static_cast<double>(tiles * lines) * line_bytes / (28.0 * processors);
        for (std::int64_t splits = 1; splits <= kMostSplits; ++splits) {
            if (splits > 1 && (lines < splits * kLeastLines || !can_split(tiles, side, splits, workspace))) {
                break;
            }
            const double turns = std::ceil(static_cast<double>(tiles * splits) / processors);
            double time = std::max(turns * static_cast<double>((lines + splits - 1) / splits) * clocks, drawn);
            if (splits > 1) {
                time += 2000.0 + static_cast<double>(splits + 1) * values * sizeof(float) / 64.0;
            }
            if (best.tile == 0 || time < least) {
                least = time;
                best = {side, static_cast<int>(splits)};
            }
        }
    }
    return best;
}

// What all launches of a call have in common.
struct Call {
    MatrixView classifier;
    std::int32_t* flag;
    TokenScoresWorkspace workspace;
    TokenScoresPlan plan;  // asked for
    cudaStream_t stream;
};

template <class Products, int Side, int Stages, bool Aligned>
cudaError_t launch_tiles(const TokenScoresItem* items, std::int64_t count, const Call& call, std::int64_t splits) {
    Common common{call.classifier, call.flag, nullptr, nullptr};
    if (splits > 1) {
        unsigned char* const memory = static_cast<unsigned char*>(call.workspace.data);
        common.arrivals = reinterpret_cast<std::int32_t*>(memory);
        common.partial = reinterpret_cast<float4*>(memory + kArrivalBytes);
    }
    const auto send = [&](const auto& batch, std::int64_t tiles) {
        constexpr int kCapacity = sizeof batch.item / sizeof batch.item[0];
        return launch(token_scores_kernel<Products, Side, Side, Stages, Aligned, kCapacity>,
                      dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits)), dim3(Products::kThreads),
                      shared_bytes(Side + Side, Stages), call.stream, batch, common);
    };
    return launch_items(items, count, [](const TokenScoresItem& item) { return tiles_of(item, Side); }, send);
}

bool is_aligned(const MatrixView& matrix, std::int64_t element_bytes) {
    return matrix.col_stride == 1 && reinterpret_cast<std::uintptr_t>(matrix.data) % kChunkBytes == 0 &&
           matrix.row_stride * element_bytes % kChunkBytes == 0;
}

// The plan that was asked for, or the best; of tile 0 where what was asked for cannot be had.
TokenScoresPlan choose_plan(const TokenScoresItem* items, std::int64_t count, const Call& call, bool halves, bool aligned) {
    if (call.plan.tile == 0) {
        if (halves && !aligned) {
            return {64, 1};
        }
        const std::int64_t channels_of_line = halves ? 64 : 32;
        return make_plan(items, count, (call.classifier.cols + channels_of_line - 1) / channels_of_line, halves,
                         call.workspace);
    }
    std::int64_t tiles = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        tiles += tiles_of(items[i], call.plan.tile);
    }
    const bool known = call.plan.tile == 64 || (call.plan.tile == 128 && halves && aligned);
    const bool fits = call.plan.splits == 1 || (call.plan.splits > 1 && call.plan.splits <= kMostSplits &&
                                                can_split(tiles, call.plan.tile, call.plan.splits, call.workspace));
    return known && fits ? call.plan : TokenScoresPlan{};
}

template <class Half>
cudaError_t launch_halves(const TokenScoresItem* items, std::int64_t count, const Call& call, bool aligned) {
    using Small = HalfProducts<Half, 64, 64, 2, 2>;
    using Large = HalfProducts<Half, 128, 128, 4, 2>;
    const TokenScoresPlan plan = choose_plan(items, count, call, true, aligned);
    return plan.tile == 0     ? cudaErrorInvalidValue
           : plan.tile == 128 ? launch_tiles<Large, 128, 3, true>(items, count, call, plan.splits)
           : aligned          ? launch_tiles<Small, 64, 4, true>(items, count, call, plan.splits)
                              : launch_tiles<Small, 64, 3, false>(items, count, call, plan.splits);
}

cudaError_t launch_floats(const TokenScoresItem* items, std::int64_t count, const Call& call, bool aligned) {
    using Small = FloatProducts<64, 64>;
    const TokenScoresPlan plan = choose_plan(items, count, call, false, aligned);
    return plan.tile == 0 ? cudaErrorInvalidValue
           : aligned      ? launch_tiles<Small, 64, 3, true>(items, count, call, plan.splits)
                          : launch_tiles<Small, 64, 3, false>(items, count, call, plan.splits);
}

}  // namespace

cudaError_t launch_token_scores(const TokenScoresItem* items, std::int64_t count, const MatrixView& classifier,
                                std::int32_t* flag, const TokenScoresWorkspace& workspace, const TokenScoresPlan& plan,
                                cudaStream_t stream) {
    const Call call{classifier, flag, workspace, plan, stream};
    for (std::int64_t begin = 0; begin < count;) {
        // Items of one dtype are one launch.
        const DType dtype = items[begin].hidden.dtype;
        const bool halves = dtype == classifier.dtype && (dtype == DType::f16 || dtype == DType::bf16);
        const std::int64_t bytes = halves ? 2 : 4;
        bool aligned = is_aligned(classifier, bytes) && (halves || (dtype == DType::f32 && classifier.dtype == dtype));
        std::int64_t end = begin;
        for (; end < count && end - begin < kMostItems && items[end].hidden.dtype == dtype; ++end) {
            aligned = aligned && is_aligned(items[end].hidden, bytes);
        }
        const auto run = !halves               ? launch_floats
                         : dtype == DType::f16 ? launch_halves<__half>
                                               : launch_halves<__nv_bfloat16>;
        const cudaError_t error = run(items + begin, end - begin, call, aligned);
        if (error != cudaSuccess) {
            return error;
        }
        begin = end;
    }
    return cudaSuccess;
}

}  // namespace tam::cuda
