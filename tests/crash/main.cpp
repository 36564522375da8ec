// Runs the crash-state explorer over all scenarios, and the other tests of the heap, or those whose name
// contains the argument.
//
// `crash_tests mutants [part of a site]` checks that it would notice whatever could be left out.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "mutants.hpp"
#include "scenarios.hpp"
#include "tests.hpp"

using namespace bequest;
using namespace bequest::tests;

namespace {
using Clock = std::chrono::steady_clock;

std::vector<Scenario> all_scenarios() {
    std::vector<Scenario> all;
    for (const auto& some :
         {heap_scenarios(), map_scenarios(), chain_scenarios(), struct_scenarios(), array_scenarios()})
        all.insert(all.end(), some.begin(), some.end());
    return all;
}

// BEQUEST_CRASH_STATES, for the sanitizers, which are slow: of each scenario's states in which recovery is
// cut off.
uint64_t recovery_states() {
    const char* wish = std::getenv("BEQUEST_CRASH_STATES");
    return wish ? std::strtoull(wish, nullptr, 10) : Explorer::kRecoveryStates;
}

double seconds_since(Clock::time_point started) {
    return std::chrono::duration<double>(Clock::now() - started).count();
}
}  // namespace

int main(int argc, char** argv) {
    World world;
    if (argc > 1 && !std::strcmp(argv[1], "mutants"))
        return check_mutants(world, all_scenarios(), argc > 2 ? argv[2] : nullptr) != 0;
    int failed = 0;
    Tally total;
    for (const Scenario& scenario : all_scenarios()) {
        if (argc > 1 && !std::strstr(scenario.name, argv[1])) continue;
        Explorer explorer(world);
        explorer.recovery_states = recovery_states();
        const auto started = Clock::now();
        try {
            const Tally tally = explorer.explore(scenario);
            total.add(tally);
            std::printf(
                "  %-64s %6.2f s  %lu states (%lu killed, %lu lost, %lu in recovery, %lu after; %lu drawn)\n",
                scenario.name, seconds_since(started), tally.states(), tally.killed, tally.lost,
                tally.in_recovery, tally.gone_on, tally.drawn);
        } catch (const std::exception& wrong) {
            failed++;
            std::printf("FAIL %s\n  %s\n", scenario.name, wrong.what());
        }
        std::fflush(stdout);
    }
    for (const auto& some : {damage_tests(), local_damage_tests(), model_tests()})
        for (const Test& test : some) {
            if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
            const auto started = Clock::now();
            const std::string wrong = test.run(world);
            failed += !wrong.empty();
            if (wrong.empty())
                std::printf("  %-64s %6.2f s\n", test.name, seconds_since(started));
            else
                std::printf("FAIL %s\n  %s\n", test.name, wrong.c_str());
            std::fflush(stdout);
        }
    std::printf("%lu states, %d failed\n", total.states(), failed);
    return failed != 0;
}
