// The fault handler with real pages, real signals, and an address space that believes what it is told.
//
// Not under ThreadSanitizer, which keeps shadow memory where the rack window is.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <fstream>

#include "doorbell.hpp"
#include "fault_barrier.hpp"
#include "fence.hpp"
#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint64_t kPages = 4096;
constexpr uint64_t kStart = kWindowBase + (uint64_t{7} << kProcessSpaceBits);

int told = 0;
FaultKind told_kind;

void listen(const Fault& fault) {
    told++;
    told_kind = fault.kind;
}

// Memory in the window that is open and of which everything from `kept` pages on is cut off.
class LostMemory {
public:
    explicit LostMemory(uint64_t kept) {
        file_ = memfd_create("test", MFD_CLOEXEC);
        void* at = nullptr;
        if (ftruncate(file_, kPages * kPageBytes) == 0)
            at = mmap(reinterpret_cast<void*>(kStart), kPages * kPageBytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_FIXED_NOREPLACE, file_, 0);
        usable_ = at == reinterpret_cast<void*>(kStart);
        usable_ = ftruncate(file_, static_cast<off_t>(kept * kPageBytes)) == 0 && usable_;
        space_.open(kStart, kPages * kPageBytes);
        guard_window(&space_);
        tell_faults_to(listen);
        Fault of_another_test;
        take_fault(of_another_test);
        told = 0;
    }
    ~LostMemory() {
        guard_window(nullptr);
        munmap(reinterpret_cast<void*>(kStart), kPages * kPageBytes);
        close(file_);
    }
    bool usable() const { return usable_; }
    static volatile uint8_t& at(uint64_t page) {
        return *reinterpret_cast<volatile uint8_t*>(kStart + page * kPageBytes);
    }

private:
    AddressSpace space_;
    int file_;
    bool usable_;
};

// Sanitizers know nothing of the window.
__attribute__((no_sanitize("address"))) uint8_t load(uint64_t page) { return LostMemory::at(page); }
__attribute__((no_sanitize("address"))) void store(uint64_t page, uint8_t value) {
    LostMemory::at(page) = value;
}

size_t mappings() {
    std::ifstream maps("/proc/self/maps");
    size_t lines = 0;
    for (std::string line; std::getline(maps, line);) lines++;
    return lines;
}

std::string a_row_of_faults_is_told_once() {
    const LostMemory memory(2);
    if (!memory.usable()) return "the window is taken";
    store(1, 7);
    for (uint64_t page = 2; page < kPages; page++) store(page, 1);
    if (told == 0) return "nobody was told";
    if (told > 50) return "told again and again";
    if (told_kind != FaultKind::kFailed) return "a file that was cut short is no fence";
    Fault fault;
    if (!take_fault(fault) || fault.address != kStart + 2 * kPageBytes) return "the first fault is not known";
    if (take_fault(fault)) return "it can be taken twice";
    if (load(1) != 7) return "a good page was covered";
    if (scratch_notes().size() != 1 || scratch_notes()[0].start != kStart + 2 * kPageBytes)
        return "what was covered is not what was bad";
    return {};
}

std::string a_closed_page_was_fenced() {
    const LostMemory memory(kPages);
    mprotect(reinterpret_cast<void*>(kStart), kPageBytes, PROT_NONE);
    store(0, 1);
    return told == 1 && told_kind == FaultKind::kFenced ? "" : "taken for something else";
}

class Title final : public Deeds {
public:
    explicit Title(int looks) : looks_(looks) { ask_deeds(*this); }
    ~Title() { ask_deeds_no_more(*this); }
    bool is_ours(uint64_t) const override { return looks_-- > 0; }

private:
    mutable int looks_;
};

// A page of it is fenced by write protection, through our own userfaultfd.
class FencedMemory : public LostMemory {
public:
    FencedMemory() : LostMemory(kPages), fence_(open_fence()) {
        if (usable()) store(0, 1);
        protect();
    }
    ~FencedMemory() { close(fence_); }
    void protect() { write_protect(fence_, getpid(), {&kRun, 1}); }
    void lift(pid_t os_pid) { lift_protection(fence_, os_pid, {&kRun, 1}); }

private:
    static constexpr PageRun kRun{kStart, kPageBytes};
    int fence_;
};

std::string what_is_fenced_and_ours_is_waited_for() {
    FencedMemory memory;
    if (!memory.usable()) return "the window is taken";
    {
        const Title title(INT_MAX);
        const pid_t child = fork();
        if (child == 0) {
            usleep(50'000);
            memory.lift(getppid());
            _exit(0);
        }
        store(0, 2);
        waitpid(child, nullptr, 0);
    }
    if (told != 0 || load(0) != 2) return "it was not waited for";
    memory.protect();
    {
        const Title title(3);  // then it is stolen
        store(0, 3);
    }
    return told == 1 && told_kind == FaultKind::kFenced ? "" : "whoever stores to stolen memory is not told";
}

std::string patience_ends() {
    const FencedMemory memory;
    if (!memory.usable()) return "the window is taken";
    const Title title(INT_MAX);
    have_patience(10'000'000);
    store(0, 1);
    have_patience(kFencePatience_ns);
    return told == 1 && told_kind == FaultKind::kFenced ? "" : "nobody was told";
}

std::string what_mprotect_has_closed_is_not_waited_for() {
    const LostMemory memory(kPages);
    const Title title(INT_MAX);
    mprotect(reinterpret_cast<void*>(kStart), kPageBytes, PROT_NONE);
    const int64_t before = monotonic_ns();
    store(0, 1);
    return told == 1 && monotonic_ns() - before < kFencePatience_ns / 2 ? "" : "it was waited for";
}

std::string random_touches_stay_within_bounds() {
    const LostMemory memory(0);
    const size_t before = mappings();
    for (uint64_t i = 0; i < kPages; i++) store(i * 2654435761u % kPages, 1);
    const size_t after = mappings();
    return after - before < 4 * kWindowsMax ? "" : "too many mappings: " + std::to_string(after - before);
}

// What a gather needs: more places at once than a thread has windows at first. A loop that goes round them
// must come to an end although each window that it opens closes another.
std::string many_places_at_once_are_covered_in_the_end() {
    const LostMemory memory(0);
    for (int round = 0; round < 10; round++)
        for (uint64_t place = 0; place < 32; place++) store(place * 100, 1);
    const int last_told = told;
    for (uint64_t place = 0; place < 32; place++) store(place * 100, 2);
    for (uint64_t place = 0; place < 32; place++)
        if (load(place * 100) != 2) return "a window was closed again";
    return told == last_told ? "" : "it still faults";
}

}  // namespace

std::vector<Test> fault_tests() {
#if defined(__SANITIZE_THREAD__)
    return {};
#else
    return {
        {"faults: a row of them is told once, and good pages stay", a_row_of_faults_is_told_once},
        {"faults: a page that somebody closed was fenced", a_closed_page_was_fenced},
        {"faults: fenced memory that is ours is waited for", what_is_fenced_and_ours_is_waited_for},
        {"faults: nobody waits for ever", patience_ends},
        {"faults: what mprotect closed is not waited for", what_mprotect_has_closed_is_not_waited_for},
        {"faults: touches everywhere need few mappings", random_touches_stay_within_bounds},
        {"faults: many places at once", many_places_at_once_are_covered_in_the_end},
    };
#endif
}

}  // namespace bequest::tests
