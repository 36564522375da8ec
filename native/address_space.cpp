#include "address_space.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "kernel.hpp"

namespace bequest {

namespace {

constexpr uint64_t kSetApartBytesMin = 8 * kPageBytes;
constexpr uint64_t kSetApartShare = 4;            // a quarter of the mappings at most are spent on speed
constexpr uint64_t kMappingsLeftToOthers = 2048;  // for the interpreter, its threads and libraries

[[noreturn]] void refuse(const char* what) {
    const int error = errno;
    if (error == ENOMEM) {
        throw TooManyMappings(std::string(what) +
                              ": the kernel has no more mappings for this process (vm.max_map_count) "
                              "or no memory for page tables");
    }
    if (error == EINVAL) {
        throw NotGranular(
            std::string(what) +
            ": this memory lies on reserved 2 MiB pages (an element of kind huge), and its parts begin "
            "and end at multiples of 2 MiB");
    }
    fail(what, error);
}

uint64_t count_lines(const char* path) {
    std::FILE* file = std::fopen(path, "re");
    if (!file) return 0;
    uint64_t lines = 0;
    for (int c; (c = std::fgetc(file)) != EOF;) lines += c == '\n';
    std::fclose(file);
    return lines;
}

uint64_t read_number(const char* path, uint64_t otherwise) {
    std::FILE* file = std::fopen(path, "re");
    if (!file) return otherwise;
    unsigned long long number = 0;
    const bool read = std::fscanf(file, "%llu", &number) == 1;
    std::fclose(file);
    return read ? number : otherwise;
}

}  // namespace

AddressSpace::AddressSpace(Tenants* tenants) : tenants_(tenants), owner_(getpid()) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    void* window = mmap(pointer(kWindowBase), kWindowBytes, PROT_NONE, flags, -1, 0);
    if (window != pointer(kWindowBase)) {
        if (window != MAP_FAILED) munmap(window, kWindowBytes);
        throw WindowTaken(
            "the rack window (2^45 bytes at 0x200000000000) is not free in this process: "
            "something else was mapped there first");
    }
    madvise(window, kWindowBytes, MADV_DONTFORK);
    const uint64_t limit = read_number("/proc/sys/vm/max_map_count", 65530);
    const uint64_t taken = count_lines("/proc/self/maps") + kMappingsLeftToOthers;
    mappings_limit_ = limit > taken ? limit - taken : 0;
    guard_window(this);
}

AddressSpace::~AddressSpace() { forget_everything(); }

void AddressSpace::forget_everything() {
    if (getpid() == owner_) {
        guard_window(nullptr);
        munmap(pointer(kWindowBase), kWindowBytes);
    }
    owner_ = 0;
    mapped_.clear();
    open_.clear();
    sealed_.clear();
    lost_.clear();
    remembered_.clear();
    set_apart_.clear();
    read_.clear();
}

void AddressSpace::reserve_room(uint64_t mappings) const {
    if (mappings_bound() + mappings <= mappings_limit_) return;
    char text[240];
    std::snprintf(text, sizeof text,
                  "this process would need more than %lu memory mappings for its regions "
                  "(vm.max_map_count less what the interpreter uses); free or merge small regions, "
                  "or raise vm.max_map_count",
                  mappings_limit_);
    throw TooManyMappings(text);
}

// What was lost may have been tampered with, and is mapped anew.
bool AddressSpace::is_mapped(uint32_t slab, uint64_t address, uint64_t nbytes) const {
    if (!lost_.empty() && overlaps(lost_, address, address + nbytes)) return false;
    auto it = mapped_.upper_bound(address);
    if (it == mapped_.begin()) return false;
    --it;
    return it->second.slab == slab && it->second.end >= address + nbytes;
}

void AddressSpace::map(uint32_t slab, uint64_t base, uint64_t slab_bytes, const OpenedSlab& opened,
                       uint64_t need, uint64_t need_bytes) {
    reserve_room(4 + 2 * opened.failed.size());
    const WindowLock lock;
    stand_first_in_line();  // new memory, and perhaps new handlers: now and then is often enough
    const uint64_t end = base + slab_bytes;
    carve_out(need, need + need_bytes);
    uint64_t gap = base;
    std::vector<std::pair<uint64_t, uint64_t>> gaps;
    auto it = mapped_.upper_bound(base);
    if (it != mapped_.begin() && std::prev(it)->second.end > base) --it;
    for (; it != mapped_.end() && it->first < end; ++it) {
        if (it->first > gap) gaps.emplace_back(gap, it->first);
        gap = std::max(gap, it->second.end);
    }
    if (gap < end) gaps.emplace_back(gap, end);
    for (const auto& [start, stop] : gaps) map_piece(start, stop, slab, base, opened);
    remove(lost_, need, need + need_bytes);  // what is remembered stays so
}

namespace {
// A file without a page: beyond its end, the kernel says SIGBUS.
void map_nothing(uint64_t start, uint64_t end) {
    const int nothing = memfd_create("bequest-failed", MFD_CLOEXEC);
    if (nothing < 0) refuse("mapping memory that has failed");
    void* at = mmap(pointer(start), end - start, PROT_NONE, MAP_SHARED | MAP_FIXED, nothing, 0);
    ::close(nothing);
    if (at == MAP_FAILED) refuse("mapping memory that has failed");
    madvise(at, end - start, MADV_DONTFORK);
}
}  // namespace

void AddressSpace::map_piece(uint64_t start, uint64_t end, uint32_t slab, uint64_t slab_base,
                             const OpenedSlab& opened) {
    void* at = mmap(pointer(start), end - start, PROT_NONE, MAP_SHARED | MAP_FIXED, opened.fd,
                    static_cast<off_t>(start - slab_base));
    if (at == MAP_FAILED) refuse("mapping a slab");
    madvise(at, end - start, MADV_DONTFORK);  // a child must not inherit memory that has one owner
    mapped_[start] = {end, slab, slab_base};
    for (const auto& [offset, nbytes] : opened.failed) {
        const uint64_t low = std::max(start, slab_base + offset);
        const uint64_t high = std::min(end, slab_base + offset + nbytes);
        if (low < high) map_nothing(low, high);
    }
}

// Forgets what is mapped in [start, end); the addresses will be mapped anew by the caller.
void AddressSpace::carve_out(uint64_t start, uint64_t end) {
    remove(open_, start, end);
    remove(sealed_, start, end);
    join_again(start, end);
    auto it = mapped_.upper_bound(start);
    if (it != mapped_.begin()) --it;
    while (it != mapped_.end() && it->first < end) {
        const uint64_t piece_start = it->first;
        const Piece piece = it->second;
        if (piece.end <= start) {
            ++it;
            continue;
        }
        it = mapped_.erase(it);
        if (piece_start < start) mapped_[piece_start] = {start, piece.slab, piece.slab_base};
        if (piece.end > end) mapped_[end] = piece;
    }
}

bool AddressSpace::is_open(uint64_t address, uint64_t nbytes) const {
    auto it = open_.upper_bound(address);
    return it != open_.begin() && std::prev(it)->second >= address + nbytes;
}

// With open pages on both sides of it.
bool AddressSpace::lies_inside_an_open_range(uint64_t address, uint64_t nbytes) const {
    auto it = open_.lower_bound(address);
    return it != open_.begin() && std::prev(it)->second > address + nbytes;
}

void AddressSpace::set_apart_if_flipped_again(uint64_t address, uint64_t nbytes) {
    if (nbytes < kSetApartBytesMin || nbytes >= kHugePageBytes) return;
    const auto known = set_apart_.find(address);
    if (known != set_apart_.end() && known->second.end == address + nbytes) return;
    const uint64_t range = address ^ nbytes;  // below the page bits of an address lies nothing
    uint64_t& seen = flipped_[(address / kPageBytes * 0x9E37'79B9'7F4A'7C15ull) >> 56];
    if (seen != range) {
        seen = range;
        return;
    }
    if (2 * set_apart_.size() >= mappings_limit_ / kSetApartShare) return;
    join_again(address, address + nbytes);
    int left = MADV_NORMAL, right = MADV_NORMAL;
    auto next = set_apart_.lower_bound(address);
    if (next != set_apart_.end() && next->first == address + nbytes) right = next->second.advice;
    if (next != set_apart_.begin() && std::prev(next)->second.end == address)
        left = std::prev(next)->second.advice;
    int advice = MADV_RANDOM;
    for (int candidate : {MADV_SEQUENTIAL, MADV_NORMAL})
        if (advice == left || advice == right) advice = candidate;
    // It only saves time: if the kernel refuses, nothing is lost.
    if (madvise(pointer(address), nbytes, advice) == 0) set_apart_[address] = {address + nbytes, advice};
}

// What is set apart in [start, end) has other bounds from now on.
void AddressSpace::join_again(uint64_t start, uint64_t end) {
    auto it = set_apart_.lower_bound(start);
    if (it != set_apart_.begin() && std::prev(it)->second.end > start) --it;
    while (it != set_apart_.end() && it->first < end) {
        madvise(pointer(it->first), it->second.end - it->first, MADV_NORMAL);
        it = set_apart_.erase(it);
    }
}

bool AddressSpace::touches_an_open_range(uint64_t address, uint64_t nbytes) const {
    auto it = open_.upper_bound(address + nbytes);
    return it != open_.begin() && std::prev(it)->second >= address;
}

bool AddressSpace::is_all_mapped(uint64_t start, uint64_t end) const {
    auto it = mapped_.upper_bound(start);
    if (it == mapped_.begin()) return false;
    for (--it; start < end; ++it) {
        if (it == mapped_.end() || it->first > start || it->second.end <= start) return false;
        start = it->second.end;
    }
    return true;
}

bool AddressSpace::open(uint64_t address, uint64_t nbytes) {
    const uint64_t end = address + nbytes;
    const WindowLock lock;
    if (has_scratch(address, end)) return false;
    for (auto read = read_.lower_bound(address); read != read_.end() && read->first < end; ++read)
        read->second.is_kept = true;
    if (is_open(address, nbytes)) return true;
    if (!is_all_mapped(address, end)) return false;
    if (!touches_an_open_range(address, nbytes)) reserve_room(2);  // else it grows one that is there
    set_apart_if_flipped_again(address, nbytes);
    if (mprotect(pointer(address), nbytes, PROT_READ | PROT_WRITE) != 0) refuse("opening pages");
    mark_open(address, end);
    return true;
}

void AddressSpace::close(uint64_t address, uint64_t nbytes) {
    const WindowLock lock;
    if (lies_inside_an_open_range(address, nbytes)) reserve_room(2);  // else no mapping is added
    for_each_unread(address, address + nbytes, [this](uint64_t start, uint64_t end) {
        set_apart_if_flipped_again(start, end - start);
        if (mprotect(pointer(start), end - start, PROT_NONE) != 0) refuse("closing pages");
        remove(open_, start, end);
        remove(sealed_, start, end);
    });
}

// --- reading -----------------------------------------------------------------------------------

// What is read is kept for that alone from now on.
template <class Act>
void AddressSpace::for_each_unread(uint64_t start, uint64_t end, const Act& act) {
    if (read_.empty()) return act(start, end);
    auto read = read_.upper_bound(start);
    if (read != read_.begin() && std::prev(read)->second.end > start) --read;
    for (; read != read_.end() && read->first < end; ++read) {
        read->second.is_kept = false;
        if (read->first > start) act(start, read->first);
        start = read->second.end;
    }
    if (start < end) act(start, end);
}

bool AddressSpace::is_only_read(uint64_t start, uint64_t end) const {
    const auto after = read_.lower_bound(end);
    if (after == read_.begin() || std::prev(after)->second.end <= start) return false;
    std::prev(after)->second.is_kept = false;
    return true;
}

bool AddressSpace::open_to_read(uint64_t address, uint64_t nbytes) {
    const uint64_t end = address + nbytes;
    const WindowLock lock;
    if (has_scratch(address, end)) return false;
    const auto known = read_.find(address);
    if (known != read_.end()) {
        known->second.readers++;
        return true;
    }
    const bool is_kept = is_open(address, nbytes);
    if (!is_kept) {
        if (!is_all_mapped(address, end)) return false;
        reserve_room(4);
        set_apart_if_flipped_again(address, nbytes);
        if (mprotect(pointer(address), nbytes, PROT_READ) != 0) refuse("opening pages");
        mark_open(address, end);
        add(sealed_, address, end);
    }
    read_[address] = {end, 1, is_kept};
    return true;
}

void AddressSpace::end_reading(uint64_t address) {
    const WindowLock lock;
    const auto known = read_.find(address);
    if (known == read_.end()) return;
    if (known->second.readers > 1) {
        known->second.readers--;
        return;
    }
    const auto ended = read_.extract(known);
    if (ended.mapped().is_kept) return;
    try {
        close(address, ended.mapped().end - address);
    } catch (...) {
        read_.emplace(address, ended.mapped());
        throw;
    }
}

void AddressSpace::protect(uint64_t address, uint64_t nbytes) {
    const WindowLock lock;
    if (has_scratch(address, address + nbytes) || !is_open(address, nbytes)) return;  // lost meanwhile
    reserve_room(2);
    if (mprotect(pointer(address), nbytes, PROT_READ) != 0) refuse("sealing pages");
    add(sealed_, address, address + nbytes);
}

void AddressSpace::unprotect(uint64_t address, uint64_t nbytes) {
    const WindowLock lock;
    if (has_scratch(address, address + nbytes) || !is_open(address, nbytes)) return;
    if (mprotect(pointer(address), nbytes, PROT_READ | PROT_WRITE) != 0) refuse("unsealing pages");
    remove(sealed_, address, address + nbytes);
}

void AddressSpace::mark_open(uint64_t start, uint64_t end) {
    add(open_, start, end);
    if (!lost_.empty()) remove(lost_, start, end);
}

void AddressSpace::add(Runs& runs, uint64_t start, uint64_t end) {
    auto it = runs.upper_bound(start);
    if (it != runs.begin() && std::prev(it)->second >= start) --it;
    while (it != runs.end() && it->first <= end) {
        start = std::min(start, it->first);
        end = std::max(end, it->second);
        it = runs.erase(it);
    }
    runs[start] = end;
}

void AddressSpace::remove(Runs& runs, uint64_t start, uint64_t end) {
    auto it = runs.upper_bound(start);
    if (it != runs.begin() && std::prev(it)->second > start) --it;
    while (it != runs.end() && it->first < end) {
        const uint64_t run_start = it->first, run_end = it->second;
        it = runs.erase(it);
        if (run_start < start) runs[run_start] = start;
        if (run_end > end) it = runs.emplace(end, run_end).first;
    }
}

// --- losses ------------------------------------------------------------------------------------

// What is remembered counts only as far as it is not open.
Believed AddressSpace::believed(uint64_t address) const {
    const auto find = [&](const Runs& runs, Belief belief) -> Believed {
        auto it = runs.upper_bound(address);
        if (it == runs.begin() || std::prev(it)->second <= address) return {Belief::kClosed, 0, 0};
        --it;
        return {belief, it->first, it->second};
    };
    Believed found = find(lost_, Belief::kLost);
    if (found.belief == Belief::kClosed) found = find(open_, Belief::kOpen);
    if (found.belief != Belief::kClosed) return found;
    found = find(remembered_, Belief::kLost);
    const auto after = open_.upper_bound(address);
    if (after != open_.end()) found.end = std::min(found.end, after->first);
    if (after != open_.begin()) found.start = std::max(found.start, std::prev(after)->second);
    return found;
}

// Back to the bare window. First the kernel, which may refuse: then nothing has changed.
void AddressSpace::forget_mapping(uint64_t start, uint64_t end) {
    if (!map_bare(start, end)) refuse("forgetting a mapping");
    carve_out(start, end);
}

void AddressSpace::mark_lost(uint64_t start, uint64_t end) {
    add(lost_, start, end);
    add(remembered_, start, end);
}

void AddressSpace::lose(uint64_t address, uint64_t nbytes) {
    const WindowLock lock;
    for_each_unread(address, address + nbytes, [this](uint64_t start, uint64_t end) {
        forget_mapping(start, end);
        mark_lost(start, end);
    });
}

void AddressSpace::forget(uint64_t address, uint64_t nbytes) {
    const WindowLock lock;
    for_each_unread(address, address + nbytes,
                    [this](uint64_t start, uint64_t end) { forget_mapping(start, end); });
}

void AddressSpace::forget_lost(uint64_t address, uint64_t nbytes) {
    const WindowLock lock;
    remove(lost_, address, address + nbytes);
    remove(remembered_, address, address + nbytes);
}

void AddressSpace::retire_scratch() {
    std::vector<ScratchRange> ranges;
    {
        const WindowLock lock;
        ranges = scratch_notes();
        for (const ScratchRange& range : ranges) {
            forget_mapping(range.start, range.end);
            mark_lost(range.start, range.end);
        }
        forget_scratch();
        end_rows();
    }
    if (!tenants_) return;
    for (const ScratchRange& range : ranges) tenants_->hear_of(range);
}

void AddressSpace::forget_all_but(const std::vector<Range>& kept) {
    const WindowLock lock;
    std::vector<Range> dropped;
    auto keep = kept.begin();
    for (const auto& [piece_start, piece] : mapped_) {
        uint64_t start = piece_start;
        while (keep != kept.end() && keep->end <= start) ++keep;
        for (auto k = keep; k != kept.end() && k->start < piece.end; ++k) {
            if (k->start > start) dropped.push_back({start, k->start});
            start = std::max(start, k->end);
        }
        if (start < piece.end) dropped.push_back({start, piece.end});
    }
    for (const Range& range : dropped) forget_mapping(range.start, range.end);
}

}  // namespace bequest
