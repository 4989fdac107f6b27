#include <atomic>
#include <cfenv>
#include <cstdlib>
#include <stdexcept>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#define TAM_HAS_FORK 1
#endif

#include "check.h"
#include "parallel.h"
#include "tam_fast/rank_gaussian_filter.h"

namespace {

using namespace tam;
using namespace tam::test;

std::vector<float> filtered(const std::vector<float>& maps, int threads) {
    std::vector<float> output(maps.size());
    RankGaussianFilterParams params;
    params.input = maps.data();
    params.output = output.data();
    params.leading_dims = 1;
    params.leading_sizes[0] = static_cast<std::int64_t>(maps.size()) / 1296;
    params.leading_strides[0] = 1296;
    params.height = 36;
    params.width = 36;
    params.row_stride = 36;
    rank_gaussian_filter(&params, 1, threads);
    return output;
}

bool every_task_runs_once(std::int64_t tasks, int threads) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
    cpu::parallel_for(tasks, threads, [&](std::int64_t task) { ++runs[static_cast<std::size_t>(task)]; });
    for (const auto& count : runs) {
        if (count != 1) {
            return false;
        }
    }
    return true;
}

void test_parallel_for() {
    for (const std::int64_t tasks : {0, 1, 2, 3, 100, 5000}) {
        for (const int threads : {1, 2, 5}) {
            check(every_task_runs_once(tasks, threads), "tasks " + std::to_string(tasks));
        }
    }
    bool thrown = false;
    try {
        cpu::parallel_for(100, 4, [](std::int64_t task) {
            if (task == 50) {
                throw std::domain_error("task 50");
            }
        });
    } catch (const std::domain_error&) {
        thrown = true;
    }
    check(thrown, "an exception of a task reaches the caller");
    check(every_task_runs_once(100, 4), "the pool works after an exception");
}

void test_concurrent_callers() {
    std::mt19937 random(1);
    const std::vector<float> maps = random_values(40 * 1296, random);
    const std::vector<float> expected = filtered(maps, 1);
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&] {
            for (int repeat = 0; repeat < 20; ++repeat) {
                wrong += same_bits(filtered(maps, 3), expected) ? 0 : 1;
            }
        });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
    check(wrong == 0, "concurrent callers");
}

void test_fp_environment() {
    std::mt19937 random(2);
    const std::vector<float> maps = random_values(40 * 1296, random);
    const std::vector<float> expected = filtered(maps, 1);
    for (const int threads : {1, 3}) {
        std::fesetround(FE_UPWARD);
        const std::vector<float> output = filtered(maps, threads);
        const int rounding = std::fegetround();
        std::fesetround(FE_TONEAREST);
        check(rounding == FE_UPWARD, "the caller's rounding mode is left alone");
        check(same_bits(output, expected), "the caller's rounding mode has no effect");
        try {
            std::fesetround(FE_DOWNWARD);
            cpu::parallel_for(4, threads, [](std::int64_t) { throw std::domain_error("any"); });
        } catch (const std::domain_error&) {
        }
        check(std::fegetround() == FE_DOWNWARD, "the rounding mode survives an exception");
        std::fesetround(FE_TONEAREST);
    }
}

#ifdef TAM_HAS_FORK
void test_fork() {
    std::mt19937 random(3);
    const std::vector<float> maps = random_values(40 * 1296, random);
    const std::vector<float> expected = filtered(maps, 3);
    const pid_t child = fork();
    if (child == 0) {
        _exit(same_bits(filtered(maps, 3), expected) ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a forked child has a pool of its own");
    check(same_bits(filtered(maps, 3), expected), "the parent's pool works after a fork");
}
#endif

void test_isa_selection() {
    for (const char* name : {"sse9", "AVX2"}) {
        bool refused = false;
        try {
            set_isa(name);
        } catch (const std::runtime_error& error) {
            refused = std::string(error.what()).find(name) != std::string::npos;
        }
        check(refused, std::string("unknown instruction set ") + name);
    }
    check(available_isas().front() == Isa::serial, "the serial path is always there");
    set_isa("");
    check(active_isa() == available_isas().back(), "the widest path is the default");
}

}  // namespace

int main() {
    test_parallel_for();
    test_concurrent_callers();
    test_fp_environment();
#ifdef TAM_HAS_FORK
    test_fork();
#endif
    test_isa_selection();
    return finish();
}
