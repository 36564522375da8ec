// The explorer is itself explored: its reduction loses no outcome, and it finds what is planted.
#include <array>
#include <random>
#include <set>

#include "doorbell.hpp"
#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint64_t kPlenty = 1'000'000;

// A little shared memory, and what each operation has seen of it.
struct Bench {
    std::array<Shared<uint32_t>, 8> fields;
    std::vector<uint32_t> seen;
    Explorer explorer{&fields, sizeof fields};

    std::vector<Operation> reset(std::vector<Operation> operations) {
        for (auto& field : fields) field.store(0);
        seen.assign(16, 0);
        return operations;
    }
    std::set<std::vector<uint32_t>> outcomes(const std::vector<Operation>& operations, Exploration& result) {
        std::set<std::vector<uint32_t>> all;
        const auto note = [&](const std::vector<bool>&) {
            std::vector<uint32_t> outcome = seen;
            for (auto& field : fields) outcome.push_back(field.load());
            all.insert(outcome);
            return std::string();
        };
        result = explorer.explore([&] { return reset(operations); }, note, kPlenty);
        return all;
    }
};

std::string expect(uint64_t wanted, uint64_t found, const char* what) {
    if (wanted == found) return "";
    return std::string(what) + ": " + std::to_string(wanted) + " expected, " + std::to_string(found) +
           " found";
}

std::string counts_orders() {
    Bench b;
    Exploration result;
    const auto thrice = [&b](size_t field) {
        return [&b, field] {
            for (uint32_t i = 0; i < 3; i++) b.fields[field].fetch_add(1);
        };
    };
    b.outcomes({{"a", thrice(0)}, {"b", thrice(0)}}, result);
    if (result.schedules != 20) return expect(20, result.schedules, "three and three steps on one field");
    b.outcomes({{"a", thrice(0)}, {"b", thrice(1)}}, result);
    if (result.schedules != 1) return expect(1, result.schedules, "steps that do not meet");
    b.explorer.brute_force = true;
    b.outcomes({{"a", thrice(0)}, {"b", thrice(1)}}, result);
    return expect(20, result.schedules, "all orders by brute force");
}

// One instruction of a made-up program: what it sees goes to a place of its own.
void step(Bench& b, uint32_t kind, size_t field, size_t place) {
    uint32_t expected = static_cast<uint32_t>(place) % 3;
    switch (kind) {
    case 0:
        b.seen[place] = b.fields[field].load();
        break;
    case 1:
        b.fields[field].store(static_cast<uint32_t>(place) + 10);
        break;
    case 2:
        b.seen[place] = b.fields[field].fetch_add(1) + 100;
        break;
    case 3:
        b.seen[place] = b.fields[field].compare_exchange_strong(expected, 50) ? 1 : expected + 200;
        break;
    default:
        if (b.fields[field].load() % 2 == 0)
            b.fields[(field + 1) % 3].store(7);  // what follows depends on it
    }
}

std::string loses_no_outcome() {
    std::mt19937 random(20240607);
    for (int program = 0; program < 60; program++) {
        Bench b;
        std::vector<Operation> operations;
        for (size_t i = 0; i < 3; i++) {
            std::array<std::pair<uint32_t, size_t>, 3> steps;
            for (auto& [kind, field] : steps) kind = random() % 5, field = random() % 3;
            operations.push_back({std::to_string(i), [&b, i, steps] {
                                      for (size_t s = 0; s < steps.size(); s++)
                                          step(b, steps[s].first, steps[s].second, 4 * i + s);
                                  }});
        }
        if (program % 3 == 0) operations[2].after = 0;
        if (program % 4 == 0) operations[1].killed_at = 1 + static_cast<uint32_t>(random() % 3);
        Exploration few, many;
        const auto reduced = b.outcomes(operations, few);
        b.explorer.brute_force = true;
        const auto all = b.outcomes(operations, many);
        if (reduced != all)
            return expect(all.size(), reduced.size(),
                          ("outcomes of program " + std::to_string(program)).c_str());
        if (few.schedules > many.schedules) return "the reduction runs more than there is";
    }
    return "";
}

std::string finds_a_lost_update() {
    Bench b;
    const auto add = [&b] { b.fields[0].store(b.fields[0].load() + 1); };
    try {
        b.explorer.explore([&] { return b.reset({{"a", add}, {"b", add}}); },
                           [&](const auto&) { return b.fields[0].load() == 2 ? "" : "an update is lost"; },
                           kPlenty);
    } catch (const Violation&) {
        return "";
    }
    return "a lost update is not found";
}

// The waker looks for sleepers before it rings; then nobody wakes who lies down in between.
std::string finds_a_lost_wakeup(bool planted) {
    Bench b;
    Shared<uint32_t>&ready = b.fields[0], &bell = b.fields[1], &sleepers = b.fields[2];
    const auto sleeper = [&] {
        sleepers.fetch_add(1);
        while (ready.load() == 0) {
            const uint32_t seen = bell.load();
            if (ready.load() == 0) sleep_on(bell, seen, INT64_MAX);
        }
    };
    const auto waker = [&] {
        const bool early = planted && sleepers.load() > 0;
        ready.store(1);
        bell.fetch_add(1);
        if (planted ? early : sleepers.load() > 0) wake(bell, 1);
    };
    try {
        b.explorer.explore([&] { return b.reset({{"sleeper", sleeper}, {"waker", waker}}); },
                           [&](const auto&) { return ""; }, kPlenty);
    } catch (const Violation& violation) {
        return planted ? "" : violation.what();
    }
    return planted ? "a lost wake-up is not found" : "";
}

std::string kills_before_each_write() {
    for (uint32_t killed_at = 1; killed_at <= 4; killed_at++) {
        Bench b;
        Exploration result;
        std::vector<Operation> operations{{"victim",
                                           [&b] {
                                               for (size_t i = 0; i < 3; i++) b.fields[i].store(1);
                                           },
                                           -1, killed_at},
                                          {"heir", [&b] { b.seen[0] = 1; }, 0}};
        const auto outcomes = b.outcomes(operations, result);
        std::vector<uint32_t> expected(16 + 8, 0);
        expected[0] = 1;
        for (uint32_t i = 1; i < killed_at; i++) expected[15 + i] = 1;
        if (outcomes != std::set{expected} || result.killed != (killed_at <= 3))
            return "a death before write " + std::to_string(killed_at) + " ends otherwise";
    }
    return "";
}

}  // namespace

std::vector<Test> explorer_tests() {
    return {
        {"explorer: counts the orders of a few steps", counts_orders},
        {"explorer: its reduction loses no outcome of 60 programs", loses_no_outcome},
        {"explorer: finds a lost update", finds_a_lost_update},
        {"explorer: finds a lost wake-up", [] { return finds_a_lost_wakeup(true); }},
        {"explorer: finds no wake-up lost where none is", [] { return finds_a_lost_wakeup(false); }},
        {"explorer: kills before each write", kills_before_each_write},
    };
}

}  // namespace bequest::tests
