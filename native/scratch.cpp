#include "scratch.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "kernel.hpp"
#include "layout.hpp"

namespace bequest {

namespace {

constexpr uint64_t kScratchBytes = kHugePageBytes;
constexpr size_t kNotesMax = 512;
constexpr uint32_t kWindowsAtFirst = 4;

std::atomic<int> scratch_file{-1};
ScratchRange notes[kNotesMax];  // sorted, disjoint
std::atomic<size_t> note_count{0};

bool map_shared(uint64_t start, uint64_t end) {
    for (uint64_t at = start; at < end;) {
        // An offset that follows from the address: neighbouring windows are one mapping of the kernel's.
        const uint64_t offset = at % kScratchBytes;
        const uint64_t bytes = std::min(end - at, kScratchBytes - offset);
        if (mmap(pointer(at), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, scratch_file.load(),
                 static_cast<off_t>(offset)) == MAP_FAILED)
            return false;
        madvise(pointer(at), bytes, MADV_DONTFORK);
        at += bytes;
    }
    return true;
}

// Nobody can use it until it is covered again.
void close_window(uint64_t start, uint64_t end) {
    if (start != end) map_bare(start, end);
}

void erase_note(size_t index) {
    std::copy(notes + index + 1, notes + note_count, notes + index);
    note_count--;
}

void insert_note(size_t index, const ScratchRange& note) {
    std::copy_backward(notes + index, notes + note_count, notes + note_count + 1);
    notes[index] = note;
    note_count++;
}

// Of a program that touches many places of lost memory in one call: what lies between two of them counts as
// lost.
void join_closest_notes() {
    size_t closest = 0;
    for (size_t i = 0; i + 1 < note_count; i++)
        if (notes[i + 1].start - notes[i].end < notes[closest + 1].start - notes[closest].end) closest = i;
    notes[closest].end = notes[closest + 1].end;
    erase_note(closest + 1);
}

void note(ScratchRange range) {
    size_t index = 0;
    while (index < note_count && notes[index].end < range.start) index++;
    while (index < note_count && notes[index].start <= range.end) {
        if (notes[index].kind != range.kind && notes[index].end == range.start) {
            index++;
            continue;
        }
        if (notes[index].kind != range.kind && notes[index].start == range.end) break;
        range = {std::min(range.start, notes[index].start), std::max(range.end, notes[index].end),
                 range.kind};
        erase_note(index);
    }
    if (note_count == kNotesMax) {
        join_closest_notes();
        return note(range);
    }
    insert_note(index, range);
}

}  // namespace

bool map_bare(uint64_t start, uint64_t end) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(pointer(start), end - start, PROT_NONE, flags, -1, 0) == MAP_FAILED) return false;
    madvise(pointer(start), end - start, MADV_DONTFORK);
    return true;
}

void make_scratch_file() {
    if (scratch_file.load() >= 0) return;
    const int fd = memfd_create("bequest-scratch", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(kScratchBytes)) != 0) fail("making scratch memory", errno);
    scratch_file.store(fd);
}

bool open_window(Windows& windows, uint64_t start, uint64_t end, FaultKind kind) {
    if (!map_shared(start, end)) return false;
    note({start, end, kind});
    windows.limit = std::clamp(windows.limit, kWindowsAtFirst, kWindowsMax);
    const uint32_t slot = windows.next++ % windows.limit;
    const uint64_t old_start = windows.starts[slot], old_end = windows.ends[slot];
    if (old_end <= start || old_start >= end) close_window(old_start, old_end);
    windows.starts[slot] = start;
    windows.ends[slot] = end;
    return true;
}

void widen(Windows& windows) { windows.limit = std::min(windows.limit * 2, kWindowsMax); }

const ScratchRange* note_of(uint64_t page) {
    for (size_t i = 0; i < note_count; i++)
        if (page >= notes[i].start && page < notes[i].end) return &notes[i];
    return nullptr;
}

bool has_scratch() { return note_count.load(std::memory_order_relaxed) > 0; }

bool has_scratch(uint64_t start, uint64_t end) {
    for (size_t i = 0; i < note_count; i++)
        if (start < notes[i].end && notes[i].start < end) return true;
    return false;
}

std::vector<ScratchRange> scratch_notes() { return {notes, notes + note_count}; }

void forget_scratch() {
    if (!has_scratch()) return;
    note_count = 0;
    fallocate(scratch_file.load(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
              static_cast<off_t>(kScratchBytes));
}

}  // namespace bequest
