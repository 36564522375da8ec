// The V2P table: which process owns which pages of its group.
//
// Theory of operation. Each slab of a group is partitioned into extents, always: every page lies in
// exactly one extent, and free runs are extents too, owned by the allocator at home. An extent's
// owner word (layout.hpp) holds owner, length and epoch; a change of ownership is one
// compare-and-swap on it, and that is its commit point. Changes of two descriptors (split, merge)
// arm an intent in the process's slot first and are still committed by one word, the left extent's.
//
// This file makes no system call and keeps no state of its own: it works on memory that other
// processes change at the same time and that any of them may have left half-way through. Words read
// from the table are therefore checked before they are used as an index.
#pragma once

#include <optional>
#include <vector>

#include "layout.hpp"

namespace bequest {

// A claim on an extent: good for as long as the word stands in the table.
struct Extent {
    uint32_t descriptor = kNoDescriptor;
    OwnerWord word;
};

// An extent with its address as it was read once. Sorted by that, never by the table's, which may change
// while it is sorted and lead std::sort astray.
struct PlacedExtent {
    uint64_t address;
    Extent extent;
    bool operator<(const PlacedExtent& other) const { return address < other.address; }
};

// Held from before a look at an owner word until the pages that it speaks of are open: who takes memory from
// a process sees by that whether somebody is about to open it (Steward::is_opening). The tests kill by
// throwing.
class Opening {
public:
    explicit Opening(Slot& slot) : openings_(slot.openings) { openings_.fetch_add(1); }
    ~Opening() noexcept(false) { openings_.fetch_sub(1); }
    Opening(const Opening&) = delete;

private:
    Shared<uint32_t>& openings_;
};

class Table {
public:
    explicit Table(void* base) : base_(static_cast<unsigned char*>(base)) {}

    void format(uint32_t group_id);
    bool is_formatted() const;  // right magic, version and size

    TableHeader& header() const { return *at<TableHeader>(0); }
    Slot& slot(uint32_t id) const { return at<Slot>(kSlotsOffset)[id % kIdCount]; }
    Cell& cell(uint32_t id, uint64_t position) const {
        return at<Cell>(kCellsOffset)[uint64_t{id % kIdCount} * kInboxCells + position % kInboxCells];
    }
    Shared<uint64_t>& block(uint32_t index) const { return at<Shared<uint64_t>>(kBlocksOffset)[index]; }
    Descriptor& extent(uint32_t index) const {
        return at<Descriptor>(kDescriptorsOffset)[index % kMaxExtents];
    }
    OwnerWord owner(uint32_t index) const { return {extent(index).owner.load()}; }
    SlabRecord& slab_record(uint32_t slab) const { return at<SlabRecord>(kSlabsOffset)[slab % kMaxSlabs]; }
    bool has_slab(uint32_t slab) const { return slab_record(slab).id_plus_one.load() == slab + 1; }
    uint32_t extent_limit() const;  // indices below it may be in use
    uint32_t slab_limit() const;
    Shared<uint32_t>& reading(uint32_t index) const {
        return at<Shared<uint32_t>>(kReadingsOffset)[index % kMaxReadings];
    }
    ReadingWord reading_word(uint32_t index) const { return {reading(index).load()}; }
    uint32_t reading_limit() const;

    // --- lives -------------------------------------------------------------------------------
    void admit(uint32_t id, uint32_t incarnation, uint32_t os_pid, const char* name);
    void mark_dead(uint32_t id);
    void vacate(uint32_t id);
    Life life(uint32_t id) const { return static_cast<Life>(slot(id).life.load() & 3); }
    uint32_t incarnation(uint32_t id) const { return static_cast<uint32_t>(slot(id).life.load() >> 2); }
    bool is_live(uint32_t id, uint32_t incarnation) const {
        return slot(id).life.load() == (uint64_t{incarnation} << 2 | static_cast<uint64_t>(Life::kLive));
    }

    uint32_t heir_word(uint32_t id) const { return incarnation(id) << 10 | id; }

    // --- ownership ---------------------------------------------------------------------------
    // The one way in which an owner word changes. Asserts that the transition is a legal one.
    bool may_change(OwnerWord from, State to) const;  // else `change` takes it for a mistake of ours
    bool change(uint32_t descriptor, OwnerWord from, OwnerWord to) const;
    bool change(Extent& extent, State state, uint32_t id) const;  // same pages; updates extent.word

    // The left `pages` of an extent stay in it, the rest becomes `empty`, which must be an EMPTY
    // descriptor of the caller's. Nothing if the extent is no longer the caller's.
    std::optional<Extent> split(uint32_t self, Extent& left, uint64_t pages, uint32_t empty) const;
    // `right` must begin where `left` ends, in the same slab, with the same state and owner. If `left` is no
    // longer the caller's, `right` has a new word: the caller's, unless that was stolen too.
    bool merge(uint32_t self, Extent& left, Extent& right) const;
    bool adjacent(const Extent& left, const Extent& right) const;

    // --- details -----------------------------------------------------------------------------
    uint64_t nbytes(const Extent& e) const {
        const uint64_t bytes = Details{extent(e.descriptor).details.load()}.nbytes();
        return bytes < e.word.pages() * kPageBytes ? bytes : e.word.pages() * kPageBytes;
    }
    uint32_t flags(uint32_t descriptor) const { return Details{extent(descriptor).details.load()}.flags(); }
    bool is_stealable(uint32_t descriptor) const { return (flags(descriptor) & kNotStealable) == 0; }
    // For who has the extent in hand. False, and nothing changed, if its word has moved on.
    bool define(const Extent& e, uint64_t nbytes, uint32_t flags) const;
    uint32_t seal(uint32_t descriptor) const { return Seal{extent(descriptor).seal.load()}.number(); }
    bool set_seal(const Extent& e, uint32_t number) const;  // as `define`
    void renew_seal(const Extent& e) const;                 // the same number, by a new owner
    // For who has free or arriving memory in hand, before it becomes a region.
    void bear(const Extent& e) const {
        extent(e.descriptor).birth = uint64_t{e.descriptor} << 32 | e.word.epoch();
    }
    // Whether it was stolen from that life of `victim` and nobody has laid a hand on it since.
    bool bears_mark(const Extent& e, uint32_t victim, uint32_t incarnation) const;
    bool awaits_adoption(const Extent& e) const;  // stolen from another, whoever that was
    void mark_stolen(uint32_t descriptor, OwnerWord stolen, uint32_t victim) const;
    PlacedExtent placed(const Extent& e) const { return {extent(e.descriptor).address, e}; }

    // --- coming home -------------------------------------------------------------------------
    void push_return(uint32_t pusher, uint32_t home, uint32_t descriptor) const;
    std::vector<uint32_t> drain_returns(uint32_t home) const;
    // Frees an extent of the caller's: to the allocator at home, and on its list if that is another process.
    bool free(uint32_t self, Extent& extent) const;

private:
    uint64_t merged_bytes(const Extent& left, const Extent& right) const;
    bool link(uint32_t pusher, uint32_t descriptor) const;
    void push(uint32_t home, uint32_t descriptor) const;
    template <class T>
    T* at(uint64_t offset) const {
        return reinterpret_cast<T*>(base_ + offset);
    }
    unsigned char* base_;
};

// Empty descriptors for one process to build extents from. Blocks of them are claimed in the table,
// so that no two processes ever take the same one; which of a block's are empty is found by looking.
class DescriptorPool {
public:
    DescriptorPool(Table table, uint32_t id) : table_(table), id_(id) {}
    std::optional<uint32_t> take();
    // One of another process's block is for that process to find.
    void give_back(uint32_t descriptor) {
        if (table_.block(descriptor / kExtentsPerBlock).load() == id_) empties_.push_back(descriptor);
    }

private:
    void look_again();
    bool claim_block();
    void add_empties_of(uint32_t block);
    bool is_unused(uint32_t descriptor) const;

    Table table_;
    uint32_t id_;
    std::vector<uint32_t> empties_;
    std::vector<uint32_t> blocks_;
    size_t claimed_since_look_ = 0;
};

}  // namespace bequest
