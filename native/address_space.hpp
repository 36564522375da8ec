// The rack window in this operating-system process: which slabs are mapped, which pages are open.
//
// Theory of operation. The whole window is reserved once, without access. A slab is mapped over its
// addresses when its first page is needed and then stays; what this process owns is open
// (read-write), everything else is closed (PROT_NONE). Opening and closing keeps the page tables,
// which is why a grant costs microseconds and not page faults: see docs/explanation.
//
// The kernel limits the number of mappings (vm.max_map_count) and fails in the middle of an mprotect
// when it is reached. We count an upper bound of what we use and refuse before that.
//
// Flipping a part of a mapping splits it and joins it again, which costs more than the flip itself for
// regions of some 64 KiB. A range of that size that is flipped a second time therefore gets a mapping of
// its own: an madvise that means nothing for shared memory but keeps the kernel from joining it.
//
// Pages that were open and are gone (stolen, failed) are *lost* until they are mapped anew or nobody can name
// them any more: there may be views of them, and who touches one is told (fault_barrier). They may come back
// and go again while such views live. So what was lost is *remembered* besides, until nobody can name it:
// when it is closed, it counts as lost again.
//
// One object per operating-system process, shared by all its attachments to one rack. Not thread-safe: the
// binding calls it with the GIL held. The fault handler reads it on any thread, so changes are made under the
// window lock.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include "fault_barrier.hpp"
#include "layout.hpp"

namespace bequest {

class TooManyMappings : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

class NotGranular : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

class WindowTaken : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Belief { kClosed, kOpen, kLost };
struct Believed {  // of a run of pages around an address
    Belief belief;
    uint64_t start, end;
};

// A slab's memory as its element hands it out. What has failed (offset, bytes) reads as zeros in the file, so
// it is mapped to nothing instead: whoever touches it faults.
struct OpenedSlab {
    int fd;
    std::vector<std::pair<uint64_t, uint64_t>> failed = {};
};

// Those who have regions and views in it: the layer above.
class Tenants {
public:
    virtual void hear_of(const ScratchRange& bad) = 0;  // their memory there is of no use any more
    virtual size_t views_of(uint64_t start, uint64_t end) const = 0;

protected:
    ~Tenants() = default;
};

class AddressSpace {
public:
    explicit AddressSpace(Tenants* tenants = nullptr);  // who outlive it
    ~AddressSpace();
    AddressSpace(const AddressSpace&) = delete;

    bool is_mapped(uint32_t slab, uint64_t address, uint64_t nbytes) const;
    // Maps the slab where nothing is mapped yet, and [need, need + need_bytes) in any case: those
    // addresses may have belonged to a slab that is no more. Does not keep the descriptor.
    void map(uint32_t slab, uint64_t base, uint64_t slab_bytes, const OpenedSlab& opened, uint64_t need,
             uint64_t need_bytes);
    // False, and nothing changed, if the range is not mapped (any more): map it first.
    bool open(uint64_t address, uint64_t nbytes);
    void close(uint64_t address, uint64_t nbytes);
    bool is_open(uint64_t address, uint64_t nbytes) const;
    // Sealed pages are open for reading only, until they are unprotected or closed.
    void protect(uint64_t address, uint64_t nbytes);
    void unprotect(uint64_t address, uint64_t nbytes);
    bool is_sealed(uint64_t start, uint64_t end) const { return overlaps(sealed_, start, end); }
    // What is being read stays open for reading, whatever becomes of it besides (closed, lost), until all who
    // have begun to read it have ended that. It is a whole extent, so whoever closes it closes all of it.
    // False as `open`.
    bool open_to_read(uint64_t address, uint64_t nbytes);
    void end_reading(uint64_t address);
    bool is_only_read(uint64_t start, uint64_t end) const;  // from here on, if it is read at all
    template <class Act>
    void for_each_open(uint64_t start, uint64_t end,
                       const Act& act) const {  // each run, as far as in [start, end)
        auto run = open_.upper_bound(start);
        if (run != open_.begin() && std::prev(run)->second > start) --run;
        for (; run != open_.end() && run->first < end; ++run)
            act(std::max(start, run->first), std::min(end, run->second));
    }

    // --- losses --------------------------------------------------------------------------------
    Believed believed(uint64_t address) const;       // for the fault handler, which holds the window lock
    void lose(uint64_t address, uint64_t nbytes);    // what is mapped there is forgotten
    void forget(uint64_t address, uint64_t nbytes);  // what is mapped there, to be mapped anew
    void forget_lost(uint64_t address, uint64_t nbytes);  // nobody can name it any more
    bool was_lost(uint64_t start, uint64_t end) const {   // some of it, and it can still be named
        return !remembered_.empty() && overlaps(remembered_, start, end);
    }
    bool has_old_views(uint64_t start, uint64_t end) const {
        return was_lost(start, end) && tenants_ && tenants_->views_of(start, end) > 0;
    }
    void retire_scratch();  // makes scratch memory vanish; what had it is lost, and the tenants hear of it
    // Forgets every mapping outside of these ranges, which ascend: what others did to it goes with it.
    struct Range {
        uint64_t start, end;
    };
    void forget_all_but(const std::vector<Range>& kept);

    // Drops the window: nothing of the rack is reachable afterwards, and this object is of no more use.
    void forget_everything();

    uint64_t mappings_bound() const {
        return 2 * (open_.size() + sealed_.size() + mapped_.size() + set_apart_.size() + lost_.size()) + 1;
    }
    uint64_t mappings_limit() const { return mappings_limit_; }

private:
    struct Piece {
        uint64_t end;
        uint32_t slab;
        uint64_t slab_base;
    };
    struct Apart {
        uint64_t end;
        int advice;  // that no neighbour has
    };
    struct Reading {
        uint64_t end;
        uint32_t readers;
        mutable bool is_kept;  // it is open for another reason, too
    };
    template <class Act>
    void for_each_unread(uint64_t start, uint64_t end, const Act& act);
    void reserve_room(uint64_t mappings) const;
    bool lies_inside_an_open_range(uint64_t address, uint64_t nbytes) const;
    bool touches_an_open_range(uint64_t address, uint64_t nbytes) const;
    bool is_all_mapped(uint64_t start, uint64_t end) const;
    void carve_out(uint64_t start, uint64_t end);
    void forget_mapping(uint64_t start, uint64_t end);
    void map_piece(uint64_t start, uint64_t end, uint32_t slab, uint64_t slab_base, const OpenedSlab& opened);
    void set_apart_if_flipped_again(uint64_t address, uint64_t nbytes);
    void join_again(uint64_t start, uint64_t end);

    using Runs = std::map<uint64_t, uint64_t>;  // start -> end; disjoint, never adjacent
    static void add(Runs& runs, uint64_t start, uint64_t end);
    static void remove(Runs& runs, uint64_t start, uint64_t end);
    static bool overlaps(const Runs& runs, uint64_t start, uint64_t end) {
        const auto after = runs.lower_bound(end);
        return after != runs.begin() && std::prev(after)->second > start;
    }
    void mark_open(uint64_t start, uint64_t end);
    void mark_lost(uint64_t start, uint64_t end);

    std::map<uint64_t, Piece> mapped_;  // by start address; disjoint
    Runs open_, sealed_, lost_, remembered_;
    std::map<uint64_t, Apart> set_apart_;  // by start address; disjoint
    std::map<uint64_t, Reading> read_;     // likewise
    std::array<uint64_t, 256> flipped_{};  // ranges seen lately, by hash
    Tenants* tenants_;
    uint64_t mappings_limit_;
    pid_t owner_;  // a forked child has no window: MADV_DONTFORK
};

}  // namespace bequest
