// Runs the crash-state explorer over all scenarios, or those whose name contains the argument.
//
// `crash_tests mutants [part of a site]` checks that it would notice whatever could be left out.
#include <cstdio>
#include <cstring>
#include <ctime>

#include "mutants.hpp"
#include "scenarios.hpp"

using namespace bequest;
using namespace bequest::tests;

int main(int argc, char** argv) {
    World world;
    if (argc > 1 && !std::strcmp(argv[1], "mutants"))
        return check_mutants(world, all_scenarios(), argc > 2 ? argv[2] : nullptr) != 0;
    int failed = 0;
    Tally total;
    for (const Scenario& scenario : all_scenarios()) {
        if (argc > 1 && !std::strstr(scenario.name, argv[1])) continue;
        Explorer explorer(world);
        const clock_t started = clock();
        try {
            const Tally tally = explorer.explore(scenario);
            total.add(tally);
            std::printf(
                "  %-64s %6.2f s  %lu states (%lu killed, %lu lost, %lu in recovery, %lu after; %lu drawn)\n",
                scenario.name, double(clock() - started) / CLOCKS_PER_SEC, tally.states(), tally.killed,
                tally.lost, tally.in_recovery, tally.gone_on, tally.drawn);
        } catch (const std::exception& wrong) {
            failed++;
            std::printf("FAIL %s\n  %s\n", scenario.name, wrong.what());
        }
        std::fflush(stdout);
    }
    std::printf("%lu states, %d failed\n", total.states(), failed);
    return failed != 0;
}
