#include "mutants.hpp"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>

namespace bequest::tests {

namespace {

constexpr unsigned kSecondsMax = 60;  // for one scenario of one mutant: else it never ends
constexpr uint64_t kRecoveryStates = 2'000;

const char* name_of(Fault fault) {
    switch (fault) {
    case Fault::kSkip:
        return "left out";
    case Fault::kEarly:
        return "too early";
    case Fault::kLate:
        return "too late";
    }
    return "";
}

// A copy goes where nobody looks yet, be it the log or fresh memory: it cannot come too early.
bool is_sensible(Step step, Fault fault) {
    if (fault == Fault::kEarly) return step == Step::kStore;
    return fault == Fault::kSkip || step == Step::kStore || step == Step::kCopy;
}

// What a scenario writes itself stands for a user's program, not for the heap.
bool is_the_heaps(const Recorder::SiteName& name) { return !name.text().starts_with("scenarios_"); }

struct Harmless {
    const char* function;
    Step step;
    int which;  // of its kind in the function
    Fault fault;
    const char* why;
};
constexpr Harmless kHarmless[] = {
    {"Segment::cut", Step::kStore, 0, Fault::kEarly,
     "the tail's word lies under a free record, or begins one"},
    {"Segment::format", Step::kStore, 0, Fault::kEarly,
     "whoever makes a heap here has given up what was here before"},
    {"TransactionLog::harden", Step::kStore, 0, Fault::kSkip,
     "it serves to notice damage, which a crash is not (damage_tests.cpp)"},
    {"TransactionLog::harden", Step::kStore, 0, Fault::kLate, "an older number says less, and nothing wrong"},
};

const char* reason_to_live(const std::vector<Recorder::SiteName>& sites, const Recorder::SiteName& name,
                           Fault fault) {
    const auto which = std::count_if(sites.begin(), sites.end(), [&](const Recorder::SiteName& other) {
        return other.function == name.function && other.step == name.step && other.line < name.line;
    });
    for (const Harmless& harmless : kHarmless)
        if (name.function.ends_with(harmless.function) && name.step == harmless.step &&
            which == harmless.which && fault == harmless.fault)
            return harmless.why;
    return nullptr;
}

struct Verdict {  // in memory that the child shares
    bool differed;
    char how[200];
};

// Which scenarios reach which site: a mutant is tried on those alone, the quickest first.
struct Reach {
    std::vector<Recorder::SiteName> sites;
    std::vector<std::set<size_t>> scenarios;  // of each site
};

Reach find_reach(World& world, const std::vector<Scenario>& scenarios) {
    Reach reach;
    Explorer explorer(world);
    for (size_t i = 0; i < scenarios.size(); i++) {
        const auto seen = explorer.sites_of(scenarios[i]);
        reach.scenarios.resize(explorer.recorder().sites().size());
        for (const uint32_t site : seen) reach.scenarios[site].insert(i);
    }
    reach.sites = explorer.recorder().sites();
    return reach;
}

void try_on(World& world, const Recorder& known, const Scenario& scenario, const Mutant& mutant,
            Verdict& verdict) {
    alarm(kSecondsMax);
    std::freopen("/dev/null", "w", stderr);
    Explorer explorer(world);
    explorer.recovery_states = kRecoveryStates;
    explorer.recorder().know(known);
    explorer.recorder().mutant = &mutant;
    try {
        explorer.explore(scenario);
    } catch (const std::exception& noticed) {
        std::snprintf(verdict.how, sizeof verdict.how, "%s", noticed.what());
    }
    verdict.differed |= explorer.recorder().has_differed();
    _exit(0);
}

// What is said of it: the first line, without the contents that follow.
std::string judge(World& world, const Recorder& known, const std::vector<Scenario>& scenarios,
                  const std::set<size_t>& reached_by, const Mutant& mutant, Verdict& verdict) {
    verdict = {};
    for (const size_t i : reached_by) {
        const pid_t child = fork();
        if (child == 0) try_on(world, known, scenarios[i], mutant, verdict);
        int status = 0;
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status))
            return std::string(scenarios[i].name) +
                   (WTERMSIG(status) == SIGALRM ? ": never ends" : ": crashes");
        if (verdict.how[0]) return std::string(verdict.how).substr(0, std::strcspn(verdict.how, "\n"));
    }
    return "";
}

}  // namespace

int check_mutants(World& world, const std::vector<Scenario>& scenarios, const char* filter) {
    const Reach reach = find_reach(world, scenarios);
    Recorder known(world.memory(), world.nbytes());
    known.know_all(reach.sites);
    auto* verdict = static_cast<Verdict*>(
        mmap(nullptr, sizeof(Verdict), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int mutants = 0, wrong = 0;
    std::vector<uint32_t> order(reach.sites.size());
    for (uint32_t site = 0; site < order.size(); site++) order[site] = site;
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return reach.sites[a] < reach.sites[b]; });
    for (const uint32_t site : order) {
        const Recorder::SiteName& name = reach.sites[site];
        if (!is_the_heaps(name) || (filter && name.text().find(filter) == std::string::npos)) continue;
        for (const Fault fault : {Fault::kSkip, Fault::kEarly, Fault::kLate}) {
            if (!is_sensible(name.step, fault)) continue;
            const std::string noticed =
                judge(world, known, scenarios, reach.scenarios[site], {site, fault}, *verdict);
            if (noticed.empty() && !verdict->differed) continue;  // there is nothing before it, or behind it
            const char* reason = reason_to_live(reach.sites, name, fault);
            mutants++;
            wrong += noticed.empty() != (reason != nullptr);
            std::printf("%s %-52s %-9s %s\n", noticed.empty() ? reason ? "may   " : "LIVES " : "killed",
                        name.text().c_str(), name_of(fault),
                        noticed.empty() && reason ? reason : noticed.c_str());
            std::fflush(stdout);
        }
    }
    munmap(verdict, sizeof(Verdict));
    std::printf("%d mutants, %d not as they should be\n", mutants, wrong);
    return wrong;
}

}  // namespace bequest::tests
