#include "tam_fast/sorting_network.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "tam_fast/rank_gaussian_filter.h"

namespace tam {
namespace {

using Wires = std::vector<std::uint16_t>;

Wires every_second(const Wires& wires, std::size_t first) {
    Wires chosen;
    for (std::size_t i = first; i < wires.size(); i += 2) {
        chosen.push_back(wires[i]);
    }
    return chosen;
}

// Batcher's odd-even merge of two sorted runs of any lengths; returns the wires in ascending order.
Wires merge(const Wires& a, const Wires& b, std::vector<Comparator>& network) {
    if (a.empty() || b.empty()) {
        return a.empty() ? b : a;
    }
    if (a.size() == 1 && b.size() == 1) {
        network.push_back({a[0], b[0]});
        return {a[0], b[0]};
    }
    const Wires even = merge(every_second(a, 0), every_second(b, 0), network);
    const Wires odd = merge(every_second(a, 1), every_second(b, 1), network);
    Wires sorted{even[0]};
    for (std::size_t i = 0; i < std::max(odd.size(), even.size() - 1); ++i) {
        if (i < odd.size() && i + 1 < even.size()) {
            network.push_back({odd[i], even[i + 1]});
        }
        if (i < odd.size()) {
            sorted.push_back(odd[i]);
        }
        if (i + 1 < even.size()) {
            sorted.push_back(even[i + 1]);
        }
    }
    return sorted;
}

Wires merge_all(const std::vector<Wires>& runs, std::size_t first, std::size_t last, std::vector<Comparator>& network) {
    if (last - first == 1) {
        return runs[first];
    }
    const std::size_t middle = first + (last - first + 1) / 2;
    const Wires left = merge_all(runs, first, middle, network);
    return merge(left, merge_all(runs, middle, last, network), network);
}

// The position of each wire in the ascending order that `sorted` lists.
Wires rank_of(const Wires& sorted) {
    Wires rank(sorted.size());
    for (std::size_t i = 0; i < sorted.size(); ++i) {
        rank[sorted[i]] = static_cast<std::uint16_t>(i);
    }
    return rank;
}

void rename(std::vector<Comparator>& network, const Wires& names) {
    for (Comparator& comparator : network) {
        comparator = {names[comparator.low], names[comparator.high]};
    }
}

// Reorders a network layer by layer: neighbouring comparators then do not wait for each other.
void sort_by_layer(std::vector<Comparator>& network) {
    std::vector<int> depth(kMaxKernelSize * kMaxKernelSize, 0);
    std::vector<std::pair<int, Comparator>> layered;
    for (const Comparator comparator : network) {
        const int layer = std::max(depth[comparator.low], depth[comparator.high]);
        depth[comparator.low] = depth[comparator.high] = layer + 1;
        layered.emplace_back(layer, comparator);
    }
    std::stable_sort(layered.begin(), layered.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::transform(layered.begin(), layered.end(), network.begin(), [](const auto& entry) { return entry.second; });
}

GeneratedNetwork generate(int k) {
    GeneratedNetwork result;
    std::vector<Wires> cells;
    std::vector<Wires> columns;
    for (int column = 0; column < k; ++column) {
        cells.push_back({static_cast<std::uint16_t>(column)});
        columns.emplace_back();
        for (int row = 0; row < k; ++row) {
            columns.back().push_back(static_cast<std::uint16_t>(row * k + column));
        }
    }
    const Wires line_order = merge_all(cells, 0, cells.size(), result.line);
    rename(result.line, rank_of(line_order));  // a first cell may be any: the values are not ordered yet
    result.wire = rank_of(merge_all(columns, 0, columns.size(), result.merge));
    rename(result.merge, result.wire);
    sort_by_layer(result.line);
    sort_by_layer(result.merge);
    return result;
}

template <int K>
std::vector<Comparator> fixed_network() {
    std::vector<Comparator> network;
    for (int column = 0; column < K; ++column) {
        for (const Comparator c : WindowNetwork<K>::line) {
            network.push_back(
                {static_cast<std::uint16_t>(c.low * K + column), static_cast<std::uint16_t>(c.high * K + column)});
        }
    }
    for (int row = 0; row < K; ++row) {
        for (const Comparator c : WindowNetwork<K>::line) {
            network.push_back({static_cast<std::uint16_t>(row * K + c.low), static_cast<std::uint16_t>(row * K + c.high)});
        }
    }
    network.insert(network.end(), std::begin(WindowNetwork<K>::completion), std::end(WindowNetwork<K>::completion));
    return network;
}

}  // namespace

const GeneratedNetwork& generated_network(int kernel_size) {
    static std::once_flag made[kMaxKernelSize + 1];
    static std::unique_ptr<const GeneratedNetwork> networks[kMaxKernelSize + 1];
    std::call_once(made[kernel_size],
                   [=] { networks[kernel_size] = std::make_unique<const GeneratedNetwork>(generate(kernel_size)); });
    return *networks[kernel_size];
}

std::vector<Comparator> sorting_network(int kernel_size) {
    if (kernel_size < 3 || kernel_size > kMaxKernelSize || kernel_size % 2 == 0) {
        throw std::invalid_argument("kernel_size: expected an odd number from 3 to " + std::to_string(kMaxKernelSize) +
                                    ", got " + std::to_string(kernel_size));
    }
    switch (kernel_size) {
        case 3: return fixed_network<3>();
        case 5: return fixed_network<5>();
        case 7: return fixed_network<7>();
        default: break;
    }
    const GeneratedNetwork& generated = generated_network(kernel_size);
    std::vector<Comparator> network;
    for (int column = 0; column < kernel_size; ++column) {
        for (const Comparator c : generated.line) {
            const auto wire = [&](int row) { return generated.wire[static_cast<std::size_t>(row * kernel_size + column)]; };
            network.push_back({wire(c.low), wire(c.high)});
        }
    }
    network.insert(network.end(), generated.merge.begin(), generated.merge.end());
    return network;
}

}  // namespace tam
