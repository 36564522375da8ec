// Runs the scenarios and tests: all of them, or those whose name contains an argument.
//
// BEQUEST_SCHEDULES limits the schedules of one exploration (the sanitizers are slow); what was cut short
// says so.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "doorbell.hpp"
#include "scenario.hpp"

namespace {

using namespace bequest;
using namespace bequest::tests;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSchedulesMax = 2'000;
#else
constexpr uint64_t kSchedulesMax = 400'000;
#endif
World* world_in_use = nullptr;

uint64_t schedules_max() {
    const char* wish = std::getenv("BEQUEST_SCHEDULES");
    return wish ? std::strtoull(wish, nullptr, 10) : kSchedulesMax;
}

// An assertion of the core has failed: say in which schedule.
void tell_and_die(int) {
    if (world_in_use && world_in_use->explorer().in_operation())
        std::fprintf(stderr, "%s\n", world_in_use->explorer().story().c_str());
    _exit(134);
}

struct Tally {
    uint64_t schedules = 0, pruned = 0, killing_points = 0, cut_short = 0;
    void add(const Exploration& e) {
        schedules += e.schedules;
        pruned += e.pruned;
        cut_short += !e.complete;
    }
};

Exploration explore(World& world, const Scenario& scenario, size_t victim, uint32_t killed_at) {
    const auto prepare = [&] {
        world.clear();
        std::vector<Operation> operations = scenario.build(world);
        if (killed_at != kNever) operations.at(victim).killed_at = killed_at;
        return operations;
    };
    return world.explorer().explore(prepare, [&](const auto&) { return world.check(); }, schedules_max());
}

Tally run(World& world, const Scenario& scenario) {
    Tally tally;
    tally.add(explore(world, scenario, 0, kNever));
    for (size_t victim : scenario.victims) {
        for (uint32_t killed_at = 1;; killed_at++) {
            const Exploration e = explore(world, scenario, victim, killed_at);
            tally.add(e);
            if (!e.killed) break;
            tally.killing_points++;
        }
    }
    return tally;
}

bool report(const char* name, const std::string& wrong, int64_t started) {
    const double seconds = static_cast<double>(monotonic_ns() - started) / 1e9;
    if (wrong.empty()) {
        std::printf("  %-64s %6.2f s\n", name, seconds);
        return true;
    }
    std::printf("FAIL  %s\n%s\n", name, wrong.c_str());
    return false;
}

bool run_and_report(World& world, const Scenario& scenario) {
    const int64_t started = monotonic_ns();
    try {
        const Tally tally = run(world, scenario);
        char kills[40] = "", cut[40] = "";
        if (tally.killing_points > 0)
            std::snprintf(kills, sizeof kills, ", %lu deaths", tally.killing_points);
        if (tally.cut_short > 0) std::snprintf(cut, sizeof cut, ", %lu CUT SHORT", tally.cut_short);
        std::printf("  %-64s %6.2f s  %lu schedules (%lu pruned)%s%s\n", scenario.name,
                    static_cast<double>(monotonic_ns() - started) / 1e9, tally.schedules, tally.pruned, kills,
                    cut);
        return true;
    } catch (const Violation& violation) {
        return report(scenario.name, violation.what(), started);
    }
}

// One scenario after another, each by the next worker that is free. How many failed.
int run_all(const std::vector<Scenario>& scenarios) {
    void* shared =
        mmap(nullptr, sizeof(std::atomic<size_t>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    auto* next = new (shared) std::atomic<size_t>(0);
    const long workers = sysconf(_SC_NPROCESSORS_ONLN);
    for (long i = 0; i < workers; i++) {
        if (fork() != 0) continue;
        World world;
        world_in_use = &world;
        int failed = 0;
        for (size_t at; (at = next->fetch_add(1)) < scenarios.size();) {
            failed += !run_and_report(world, scenarios[at]);
            std::fflush(stdout);
        }
        _exit(std::min(failed, 99));
    }
    int failed = 0;
    for (int status; wait(&status) > 0;) failed += WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    return failed;
}

}  // namespace

int main(int argc, char** argv) {
    std::signal(SIGABRT, tell_and_die);
    const auto wanted = [&](const char* name) {
        for (int i = 1; i < argc; i++)
            if (std::strstr(name, argv[i])) return true;
        return argc == 1;
    };
    int failed = 0;
    for (const auto& tests : {explorer_tests(), checker_tests(), hostile_tests(), stress_tests(),
                              fault_tests(), liveness_tests()}) {
        for (const Test& test : tests) {
            if (!wanted(test.name)) continue;
            const int64_t started = monotonic_ns();
            failed += !report(test.name, test.run(), started);
            std::fflush(stdout);
        }
    }
    std::vector<Scenario> scenarios;
    for (const auto& some :
         {grant_scenarios(), inbox_scenarios(), free_scenarios(), death_scenarios(), steward_scenarios(),
          sleep_scenarios(), recovery_scenarios(), theft_scenarios(), seal_scenarios(), frozen_scenarios()})
        for (const Scenario& scenario : some)
            if (wanted(scenario.name)) scenarios.push_back(scenario);
    failed += run_all(scenarios);
    std::printf(failed == 0 ? "all passed\n" : "%d failed\n", failed);
    return failed != 0;
}
