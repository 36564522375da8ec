// Scratch memory: what lies under lost pages for as long as an instruction needs it.
//
// Theory of operation. A *window* of scratch memory is laid over the page that was touched, and over its bad
// neighbours as far as the thread's row of faults has come: 4 KiB at first, 64 KiB at most. Each thread has a
// few windows at a time, the latest; an older one is closed again, so that another thread that comes by there
// faults itself. Only a thread that needs more at once, as an instruction does that gathers from many places,
// gets more. What was ever covered is *noted*, until the exception is made: then all windows vanish, and what
// was noted is lost for the address space.
//
// All windows show the same small file, so that scratch memory costs next to nothing however much is lost.
// Two threads that touch the same window in the same moment may share it, and then one of them is not told.
//
// Everything here is called with the window lock held, allocates nothing, and may run in a signal handler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bequest {

enum class FaultKind : uint32_t {
    kFenced,  // the pages are there, and somebody keeps us from them
    kFailed,  // the pages are gone
};

struct ScratchRange {
    uint64_t start, end;
    FaultKind kind;
};

constexpr uint32_t kWindowsMax = 40;  // an instruction may gather from 16 places, each across two pages
struct Windows {                      // of one thread
    uint64_t starts[kWindowsMax], ends[kWindowsMax];
    uint32_t next, limit;  // a ring
};

bool map_bare(uint64_t start, uint64_t end);  // as the window was in the beginning: closed, and nothing there

void make_scratch_file();  // not in the handler
// Lays scratch memory over the pages. False if the kernel refuses, with errno.
bool open_window(Windows& windows, uint64_t start, uint64_t end, FaultKind kind);
void widen(Windows& windows);  // it needs more of them at once

const ScratchRange* note_of(uint64_t page);  // nullptr if it was not covered
bool has_scratch();                          // may be asked without the lock
bool has_scratch(uint64_t start, uint64_t end);
std::vector<ScratchRange> scratch_notes();  // not in the handler
void forget_scratch();                      // all windows have been mapped over: gives the memory back

}  // namespace bequest
