#pragma once

#include <cstdint>
#include <vector>

namespace tam {

// Compare-exchange: afterwards wire `low` holds the smaller value and wire `high` the larger one.
struct Comparator {
    std::uint16_t low;
    std::uint16_t high;
};

// Sorts a K x K window, wires numbered row-major: sort the columns (a column's work is shared by the K windows that hold
// it), sort the rows, which keeps the columns sorted, then complete the partial order. Ascending in row-major order.
template <int K>
struct WindowNetwork;

// 3 shared + 3 x 3 + 7 comparators.
template <>
struct WindowNetwork<3> {
    static constexpr Comparator line[] = {{0, 2}, {0, 1}, {1, 2}};
    static constexpr Comparator completion[] = {{1, 3}, {2, 6}, {5, 7}, {2, 4}, {5, 6}, {2, 3}, {4, 5}};
};

// 9 shared + 5 x 9 + 49 comparators. The completion was found by a beam search over the 252 zero-one matrices with sorted
// rows and columns.
template <>
struct WindowNetwork<5> {
    static constexpr Comparator line[] = {{0, 3}, {1, 4}, {0, 2}, {1, 3}, {0, 1}, {2, 4}, {1, 2}, {3, 4}, {2, 3}};
    static constexpr Comparator completion[] = {
        {1, 5},   {2, 10},  {3, 15},  {4, 20},  {7, 11},  {8, 16},  {9, 21},  {13, 17}, {14, 22}, {19, 23},
        {2, 5},   {3, 6},   {4, 15},  {9, 16},  {18, 21}, {19, 22}, {3, 5},   {4, 7},   {6, 10},  {12, 15},
        {16, 20}, {19, 21}, {4, 6},   {8, 12},  {9, 15},  {13, 16}, {14, 20}, {4, 5},   {8, 10},  {9, 12},
        {11, 13}, {14, 17}, {7, 11},  {12, 13}, {14, 16}, {17, 18}, {7, 8},   {9, 11},  {15, 17}, {18, 20},
        {6, 7},   {8, 10},  {11, 12}, {14, 15}, {17, 18}, {19, 20}, {9, 10},  {13, 14}, {16, 17},
    };
};

// 16 shared + 7 x 16 + 165 comparators, found in the same way over 3432 matrices.
template <>
struct WindowNetwork<7> {
    static constexpr Comparator line[] = {
        {0, 6}, {2, 3}, {4, 5}, {0, 2}, {1, 4}, {3, 6}, {0, 1}, {2, 5},
        {3, 4}, {1, 2}, {4, 6}, {2, 3}, {4, 5}, {1, 2}, {3, 4}, {5, 6},
    };
    static constexpr Comparator completion[] = {
        {1, 7},   {2, 14},  {3, 21},  {4, 28},  {5, 35},  {6, 42},  {9, 15},  {10, 22}, {11, 29}, {12, 36}, {13, 43},
        {17, 23}, {18, 30}, {19, 37}, {20, 44}, {25, 31}, {26, 38}, {27, 45}, {33, 39}, {34, 46}, {41, 47}, {2, 7},
        {6, 35},  {9, 14},  {10, 21}, {11, 28}, {17, 22}, {24, 29}, {25, 30}, {26, 37}, {27, 43}, {33, 38}, {34, 44},
        {36, 42}, {41, 45}, {5, 11},  {6, 12},  {8, 9},   {10, 15}, {13, 36}, {16, 21}, {18, 28}, {20, 42}, {25, 29},
        {32, 37}, {34, 43}, {41, 44}, {3, 8},   {4, 9},   {5, 14},  {6, 18},  {12, 35}, {15, 16}, {17, 21}, {20, 36},
        {24, 28}, {27, 42}, {33, 37}, {40, 44}, {4, 7},   {5, 8},   {6, 11},  {12, 18}, {13, 35}, {22, 24}, {23, 28},
        {26, 36}, {34, 42}, {40, 43}, {44, 46}, {3, 4},   {6, 10},  {11, 16}, {12, 17}, {19, 35}, {21, 22}, {23, 24},
        {25, 28}, {26, 31}, {34, 36}, {39, 42}, {45, 46}, {6, 9},   {10, 15}, {13, 19}, {20, 35}, {31, 32}, {36, 38},
        {41, 42}, {6, 8},   {10, 14}, {13, 18}, {19, 23}, {20, 24}, {27, 35}, {38, 40}, {42, 43}, {6, 7},   {9, 10},
        {12, 14}, {13, 21}, {17, 19}, {18, 22}, {23, 30}, {24, 31}, {26, 27}, {34, 35}, {5, 6},   {8, 9},   {10, 11},
        {13, 15}, {16, 18}, {20, 21}, {22, 25}, {27, 32}, {31, 36}, {33, 34}, {35, 37}, {11, 13}, {14, 16}, {15, 17},
        {18, 20}, {19, 22}, {25, 29}, {30, 35}, {32, 39}, {34, 38}, {11, 12}, {13, 15}, {16, 18}, {19, 20}, {25, 26},
        {29, 33}, {32, 35}, {34, 36}, {37, 39}, {13, 14}, {15, 16}, {17, 18}, {20, 28}, {22, 25}, {24, 26}, {31, 33},
        {34, 35}, {36, 37}, {39, 41}, {21, 28}, {24, 25}, {26, 29}, {32, 33}, {38, 39}, {40, 41}, {25, 26}, {27, 28},
        {23, 27}, {28, 30}, {21, 23}, {26, 27}, {28, 29}, {30, 31}, {21, 22}, {23, 24}, {27, 28}, {24, 25}, {25, 26},
    };
};

inline constexpr int kLargestFixedNetwork = 7;

// Any odd kernel size, generated: Batcher's odd-even merge of the sorted columns.
struct GeneratedNetwork {
    std::vector<Comparator> line;     // sorts a column of k values
    std::vector<Comparator> merge;    // sorts k^2 wires whose k sorted columns were placed by `wire`
    std::vector<std::uint16_t> wire;  // wire[row * k + column]: where the row-th smallest value of a column goes
};
const GeneratedNetwork& generated_network(int kernel_size);

// The whole network of a K x K window over wires 0 .. K*K-1 as the kernels execute it, columns unshared: applied in order
// it leaves the wires ascending. Throws std::invalid_argument unless kernel_size is odd and within 3 .. kMaxKernelSize.
std::vector<Comparator> sorting_network(int kernel_size);

}  // namespace tam
