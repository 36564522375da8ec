// Heaps that something has written into: each bit of a small one is flipped in turn.
//
// Whatever flips, nothing may be read or written outside the heap, nothing may run for ever, and only the
// heap's own errors may come out. What has a checksum must be recognised. The memory around the arena is not
// mapped.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "array.hpp"
#include "map.hpp"
#include "record_chain.hpp"
#include "removal.hpp"
#include "structure.hpp"
#include "tests.hpp"

namespace bequest::tests {

namespace {

constexpr unsigned kSecondsMax = 20;  // for one bit: else it never ends

// Of the bits, every fifth for the sanitizers, which are slow (see main.cpp).
uint64_t bit_stride() { return std::getenv("BEQUEST_CRASH_STATES") ? 5 : 1; }

Struct state(World& world) {
    return Struct(world.heap(), "state", StructLayout("count int\nlabel str\n"),
                  [](Struct& fresh) { fresh.set_bytes(1, "default"); });
}

void fill(World& world) {
    world.clear();
    world.create();
    world.cells("cells", 4);
    Map map(world.heap(), "map");
    for (int i = 0; i < 24; i++) map.put("key-" + std::to_string(i), std::string(i % 7 * 5, 'v'));
    RecordChain log(world.heap(), "log", ObjectKind::kLog);
    for (int i = 0; i < 30; i++) log.append("record-" + std::to_string(i));
    state(world).set_bytes(1, "label");
    Array(world.heap(), "array", "u2", 2, 9).append("rows", 2);
}

// As a kill leaves it: in the middle of a transaction, or behind the commit of a journal.
void leave_transaction(World& world) {
    world.heap().begin();
    Map(world.heap(), "map").put("key-1", "half");
    RecordChain(world.heap(), "log", ObjectKind::kLog).append("half");
    state(world).set_bytes(1, "half");
    world.heap().snapshot(world.cells("cells"), 24);
    world.write(world.cells("cells"), 5);
}

void leave_journal(World& world) {
    const uint64_t phase_offset = kHeapHeaderOffset + offsetof(HeapHeader, phase);
    auto& phase = *reinterpret_cast<uint64_t*>(kArenaAddress + phase_offset);
    const Phase before{phase};
    Journal journal(world.heap());
    journal.set(*world.cells("cells"), 9);
    journal.commit();
    phase = Phase::make(before.serial(), true).bits;
}

// Uses everything that there is, in every way.
void use(World& world) {
    world.contents();
    Heap& heap = world.heap();
    Map map(heap, "map");
    for (int i = 0; i < 26; i++) {
        const std::string key = "key-" + std::to_string(i);
        map.get(key);
        if (i % 3 == 0) map.erase(key);
        if (i % 3 == 1) map.put(key, "another value");
    }
    RecordChain log(heap, "log", ObjectKind::kLog);
    log.append("more");
    log.drop_before(log.first_index() + 25);
    state(world).set_bytes(1, "another label");
    state(world).set_word(0, 5);
    Array array(heap, "array", "u2", 2, 0);
    array.write(4, "more", 4);
    array.append(nullptr, 20);
    array.resize(3);
    world.cells("others", 64);
    heap.free_bytes();
    world.contents();
    map.clear();
    for (const char* name : {"log", "map", "array", "state", "cells"}) remove(heap, name);
    world.contents();
}

enum Outcome : uint8_t { kUnharmed, kRefused, kNoticed, kWrong };

Outcome flip(World& world, const std::vector<unsigned char>& image, uint64_t bit) {
    world.close();
    std::memcpy(world.memory(), image.data(), image.size());
    world.memory()[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
    try {
        world.open();
    } catch (const CorruptHeap&) {
        return kRefused;
    } catch (const ForeignHeap&) {
        return kRefused;
    }
    try {
        use(world);
    } catch (const CorruptHeap&) {
        return kNoticed;
    } catch (const HeapFull&) {
        return kNoticed;  // what is damaged may say that everything is in use
    }
    return kUnharmed;
}

bool must_be_refused(uint64_t offset) {
    const uint64_t phase = kHeapHeaderOffset + offsetof(HeapHeader, phase),
                   count = kHeapHeaderOffset + offsetof(HeapHeader, segments_used);
    return offset < sizeof(SegmentHeader) || offset - phase < 8 || offset - count < 8;
}
bool must_be_noticed(uint64_t offset) {
    const uint64_t roots = kHeapHeaderOffset + offsetof(HeapHeader, roots);
    return must_be_refused(offset) || offset - roots < 16;
}

struct Report {  // in memory that the child shares
    uint64_t bit, refused, noticed;
    char wrong[200];
};

void flip_all(World& world, uint64_t nbytes, Report& report) {
    const std::vector<unsigned char> image(world.memory(), world.memory() + kArenaBytes);
    for (report.bit = 0; report.bit < nbytes * 8; report.bit += bit_stride()) {
        alarm(kSecondsMax);
        try {
            const Outcome outcome = flip(world, image, report.bit);
            report.refused += outcome == kRefused;
            report.noticed += outcome == kNoticed;
            const uint64_t offset = report.bit / 8;
            if (outcome == kUnharmed ? must_be_noticed(offset)
                                     : outcome == kNoticed && must_be_refused(offset))
                throw HeapMisuse("nobody has noticed");
        } catch (const std::exception& other) {
            std::snprintf(report.wrong, sizeof report.wrong, "byte %lu, bit %lu: %s", report.bit / 8,
                          report.bit % 8, other.what());
            break;
        }
    }
    _exit(0);
}

std::string each_bit(World& world, uint64_t nbytes) {
    auto* report = static_cast<Report*>(
        mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const pid_t child = fork();
    if (child == 0) flip_all(world, nbytes, *report);
    int status = 0;
    waitpid(child, &status, 0);
    std::string wrong = report->wrong;
    if (WIFSIGNALED(status))
        wrong = "byte " + std::to_string(report->bit / 8) + ", bit " + std::to_string(report->bit % 8) +
                ": " + strsignal(WTERMSIG(status));
    if (wrong.empty() && report->noticed + report->refused < 1000 / bit_stride())
        wrong = "hardly any bit was ever noticed";
    munmap(report, sizeof(Report));
    return wrong;
}

std::string other_version(World& world) {
    fill(world);
    world.close();
    auto* header = reinterpret_cast<SegmentHeader*>(world.memory());
    header->version = kHeapVersion + 1;
    try {
        world.open();
    } catch (const ForeignHeap& foreign) {
        return std::string(foreign.what()).find("format 2") == std::string::npos ? foreign.what() : "";
    }
    return "it was opened";
}

}  // namespace

std::vector<Test> damage_tests() {
    return {
        {"each bit of a heap at rest is flipped",
         [](World& world) {
             fill(world);
             return each_bit(world, kHeapBytes);
         }},
        {"each bit of headers and log in the middle of a transaction is flipped",
         [](World& world) {
             fill(world);
             leave_transaction(world);
             return each_bit(world, kLogOffset + kLogBytesMin);
         }},
        {"each bit of headers and log behind a journal's commit is flipped",
         [](World& world) {
             fill(world);
             leave_journal(world);
             return each_bit(world, kLogOffset + kLogBytesMin);
         }},
        {"a heap of another version is refused", other_version},
    };
}

}  // namespace bequest::tests
