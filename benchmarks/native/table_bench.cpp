// Operations a second of the V2P table alone: no system calls, no Python, one core.
//
//   table_bench [operations] [extents]
//
// A grant here is all that the table does for one: claim a cell, fill it, swap the owner word, publish; take
// the cell, swap the owner word, finish. Prints one JSON object.
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "arena.hpp"
#include "recovery.hpp"

using namespace bequest;

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Table new_table() {
    void* base =
        mmap(nullptr, kTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) std::abort();
    Table table(base);
    table.format(1);
    table.admit(1, 1, 0, "a");
    table.admit(2, 1, 0, "b");
    return table;
}

// Hands every extent to `to` and accepts it there, round and round.
double grants_per_second(Table table, std::vector<Extent>& extents, uint64_t operations) {
    Delivery delivery;
    uint32_t from = 1, to = 2;
    const auto start = std::chrono::steady_clock::now();
    uint64_t done = 0;
    while (done < operations) {
        const Inbox inbox(table, to);
        for (Extent& e : extents) {
            const auto position = inbox.claim(from);
            const Extent in_flight{e.descriptor, e.word.next(State::kInFlight, to)};
            inbox.seal(*position, in_flight, 1, {from, 1}, {});
            if (!table.change(e.descriptor, e.word, in_flight.word)) std::abort();
            inbox.publish(*position, from);
            const auto taken = inbox.take(to, delivery);
            e = delivery.extent;
            if (!table.change(e, State::kOwned, to)) std::abort();
            inbox.finish(*taken, to);
        }
        done += extents.size();
        std::swap(from, to);
    }
    return static_cast<double>(done) / seconds_since(start);
}

}  // namespace

int main(int argc, char** argv) {
    const uint64_t operations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 5'000'000;
    const uint32_t count = argc > 2 ? static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)) : 1024;
    Table table = new_table();
    Steward steward(table);
    DescriptorPool pool(table, 1);
    Arena arena(table, 1, pool);
    steward.add_slab({1, kWindowBase + kProcessSpaceBytes, count, 0, false, 1});

    std::vector<Extent> extents;
    const auto start = std::chrono::steady_clock::now();
    for (uint32_t i = 0; i < count; i++) {
        Extent run = *arena.pick({1, false});
        if (run.word.pages() > 1) arena.put(*table.split(1, run, 1, *pool.take()));
        if (!table.change(run, State::kOwned, 1)) std::abort();
        extents.push_back(run);
    }
    const double carved = count / seconds_since(start);
    const double granted = grants_per_second(table, extents, operations);
    if (!steward.audit().empty()) std::abort();
    std::printf("{\"grants_per_second\": %.0f, \"allocations_by_split_per_second\": %.0f, \"extents\": %u}\n",
                granted, carved, count);
}
