// Heaps that something has written into: each bit of a small one is flipped in turn.
//
// Whatever flips, nothing may be read or written outside the heap, nothing may run for ever, and only the
// heap's own errors may come out. The memory around the arena is not mapped. And each bit has a role
// (roles.hpp), which says what must come of it:
//
//   the heap's own  CorruptHeap or ForeignHeap, when the heap is opened or when everything in it is used;
//   the user's      other contents, and no error: nobody claims to notice;
//   nothing         the same contents, and the same again after everything has been used.
//
// In the middle of a transaction, or of a journal, what decides the outcome must be noticed; all else is
// either noticed or put right by the recovery.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "array.hpp"
#include "map.hpp"
#include "named_memory.hpp"
#include "record_chain.hpp"
#include "removal.hpp"
#include "roles.hpp"
#include "structure.hpp"
#include "tests.hpp"

namespace bequest::tests {

namespace {

constexpr unsigned kSecondsMax = 20;  // for one bit: else it never ends

// Of the bits, every fifth for the sanitizers, which are slow (see main.cpp).
uint64_t bit_stride() { return std::getenv("BEQUEST_CRASH_STATES") ? 5 : 1; }
// Nine of ten bits mean nothing. With each of them flipped the heap is opened and read, and with every fifth
// it is used as well, which takes much longer.
constexpr uint64_t kUsedStride = 5;

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
    Transaction transaction(world.heap());
    const HeapMemory memory = make_memory(world.heap(), "memory", 20);
    std::memset(reinterpret_cast<void*>(memory.address), 'm', memory.nbytes);
    transaction.commit();
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

// Uses everything that there is, in every way; what there is then.
std::string use(World& world) {
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
    const std::string left = world.contents() + std::to_string(heap.free_bytes());
    map.clear();
    for (const char* name : {"log", "map", "array", "state", "memory"}) remove(heap, name);
    Transaction transaction(heap);
    heap.free(heap.find_root("cells")->address);
    heap.remove_root("cells");
    transaction.commit();
    world.contents();
    return left;
}

enum class Outcome : uint8_t { kNoticed, kChanged, kUnharmed };

struct Intact {
    std::vector<unsigned char> image;
    std::vector<Role> roles;
    std::string contents, after_use;
};

// The heap as it lies there; opened once, for comparison.
Intact take_intact(World& world, std::vector<Role> roles) {
    world.close();
    Intact intact{{world.memory(), world.memory() + kArenaBytes}, std::move(roles), "", ""};
    world.open();
    intact.contents = world.contents();
    intact.after_use = use(world);
    return intact;
}

Outcome flip(World& world, const Intact& intact, uint64_t bit, bool is_used) {
    world.close();
    std::memcpy(world.memory(), intact.image.data(), intact.image.size());
    world.memory()[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
    try {
        world.open();
        if (world.contents() != intact.contents) return Outcome::kChanged;
        return !is_used || use(world) == intact.after_use ? Outcome::kUnharmed : Outcome::kChanged;
    } catch (const CorruptHeap&) {
        return Outcome::kNoticed;
    } catch (const ForeignHeap&) {
        return Outcome::kNoticed;
    }
}

using Verdict = const char* (*)(Role, Outcome);  // what is wrong with that; nothing

const char* at_rest(Role role, Outcome outcome) {
    if (role == Role::kOwn && outcome != Outcome::kNoticed) return "damage that nobody notices";
    if (role == Role::kUsers && outcome != Outcome::kChanged) return "the user's bytes are not as they were";
    if (role == Role::kNothing && outcome != Outcome::kUnharmed) return "bytes that mean something after all";
    return nullptr;
}

const char* in_recovery(Role role, Outcome outcome) {
    if (role == Role::kOwn && outcome != Outcome::kNoticed) return "damage that nobody notices";
    return outcome == Outcome::kChanged ? "another outcome, and nobody notices" : nullptr;
}

struct Report {  // in memory that the child shares
    uint64_t bit;
    uint64_t noticed, changed, unharmed;
    char wrong[200];
};

void flip_all(World& world, const Intact& intact, uint64_t nbytes, Verdict judge, Report& report) {
    for (report.bit = 0; report.bit < nbytes * 8; report.bit += bit_stride()) {
        const Role role = intact.roles[report.bit / 8];
        alarm(kSecondsMax);
        const char* wrong = nullptr;
        try {
            const bool is_used = role != Role::kNothing || report.bit % kUsedStride == 0;
            const Outcome outcome = flip(world, intact, report.bit, is_used);
            report.noticed += outcome == Outcome::kNoticed;
            report.changed += outcome == Outcome::kChanged;
            report.unharmed += outcome == Outcome::kUnharmed;
            wrong = judge(role, outcome);
            if (wrong) std::snprintf(report.wrong, sizeof report.wrong, "%s", wrong);
        } catch (const std::exception& other) {
            std::snprintf(report.wrong, sizeof report.wrong, "%s", other.what());
        }
        if (report.wrong[0]) break;
    }
    _exit(0);
}

std::string each_bit(World& world, std::vector<Role> roles, uint64_t nbytes, Verdict judge) {
    const Intact intact = take_intact(world, std::move(roles));
    auto* report = static_cast<Report*>(
        mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const pid_t child = fork();
    if (child == 0) flip_all(world, intact, nbytes, judge, *report);
    int status = 0;
    waitpid(child, &status, 0);
    std::string wrong = report->wrong;
    if (WIFSIGNALED(status)) wrong = strsignal(WTERMSIG(status));
    if (!wrong.empty())
        wrong = "byte " + std::to_string(report->bit / 8) + ", bit " + std::to_string(report->bit % 8) +
                ": " + wrong;
    std::printf("    %lu bits noticed, %lu the user's, %lu that mean nothing\n", report->noticed,
                report->changed, report->unharmed);
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
             return each_bit(world, roles_at_rest(world), kHeapBytes, at_rest);
         }},
        {"each bit of headers and log in the middle of a transaction is flipped",
         [](World& world) {
             fill(world);
             leave_transaction(world);
             return each_bit(world, roles_of_recovery(world), kLogOffset + kLogBytesMin, in_recovery);
         }},
        {"each bit of headers and log behind a journal's commit is flipped",
         [](World& world) {
             fill(world);
             leave_journal(world);
             return each_bit(world, roles_of_recovery(world), kLogOffset + kLogBytesMin, in_recovery);
         }},
        {"a heap of another version is refused", other_version},
    };
}

}  // namespace bequest::tests
