// What a hand-off is made of, without Python and one at a time: the table's part, and the kernel's.
//
//   table_bench [operations] [bytes to flip]
//
// A grant here is all that the table does for one: claim a cell, fill it, swap the owner word, publish; take
// the cell, swap the owner word, finish. A flip is the mprotect that closes, or opens, shared memory that has
// been touched and is a mapping of its own: the price of "the old owner cannot touch it any more". Prints one
// JSON object.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "arena.hpp"
#include "recovery.hpp"

using namespace bequest;

namespace {

constexpr int kFlips = 5000;
constexpr uint32_t kExtents = 1024;

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

struct Flip {
    double close, open;  // seconds, medians
};

double median(std::vector<double>& samples) {
    std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
    return samples[samples.size() / 2];
}

Flip flip_seconds(size_t bytes) {
    const int file = memfd_create("table_bench", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) std::abort();
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) std::abort();
    auto* bytes_of = static_cast<volatile unsigned char*>(memory);
    std::vector<double> closing, opening;
    for (int i = 0; i < kFlips; i++) {
        for (size_t at = 0; at < bytes; at += kPageBytes) bytes_of[at] = bytes_of[at] + 1;
        auto start = std::chrono::steady_clock::now();
        if (mprotect(memory, bytes, PROT_NONE) != 0) std::abort();
        closing.push_back(seconds_since(start));
        start = std::chrono::steady_clock::now();
        if (mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0) std::abort();
        opening.push_back(seconds_since(start));
    }
    munmap(memory, bytes);
    close(file);
    return {median(closing), median(opening)};
}

}  // namespace

int main(int argc, char** argv) {
    const uint64_t operations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 5'000'000;
    const size_t flipped = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 64 << 10;
    Table table = new_table();
    Steward steward(table);
    DescriptorPool pool(table, 1);
    Arena arena(table, 1, pool, [](uint64_t, uint64_t) { return false; });
    steward.add_slab({1, kWindowBase + kProcessSpaceBytes, kExtents, 0, false, 1});

    std::vector<Extent> extents;
    for (uint32_t i = 0; i < kExtents; i++) {
        Extent run = *arena.pick({1, false});
        if (run.word.pages() > 1) arena.put(*table.split(1, run, 1, *pool.take()));
        if (!table.change(run, State::kOwned, 1)) std::abort();
        extents.push_back(run);
    }
    const double granted = grants_per_second(table, extents, operations);
    if (!steward.audit().empty()) std::abort();
    const Flip flip = flip_seconds(flipped);
    std::printf("{\"grants_per_second\": %.0f, \"close_seconds\": %.9f, \"open_seconds\": %.9f}\n", granted,
                flip.close, flip.open);
}
