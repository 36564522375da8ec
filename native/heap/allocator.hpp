// Finds room in a heap's segments (theory: heap_layout.hpp, "The allocator").
//
// What is allocated is said by chunk words and bitmaps alone. This index, of free chunks and of runs with
// free units, is private memory: made at the first use by walking the chunk tables, and right from then on. A
// reservation takes room out of the index; which word has to be changed for it to count, and to what, is for
// the transaction to carry out when it commits. `release` puts room back, when nobody has a claim to it any
// more.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <vector>

#include "segment.hpp"

namespace bequest {

struct Block {
    uint64_t address, nbytes;  // of the whole unit or record
    const Segment* segment;
    uint64_t chunk;  // where its record begins
    uint64_t* word;  // that says whether it is allocated: of the bitmap, where this is its bit,
    uint64_t bit;    // or of the chunk table, if 0

    uint64_t taken(uint64_t value) const;  // what the word becomes
    uint64_t freed(uint64_t value) const;
    bool is_taken(uint64_t value) const;
};

class Allocator {
public:
    // Asked for another segment that has room for so many bytes; false if there is none to be had.
    using Grow = std::function<bool(uint64_t nbytes)>;
    explicit Allocator(Grow grow) : grow_(std::move(grow)) {}

    void add(Segment* segment);
    bool contains(uint64_t address, uint64_t nbytes) const {
        return segment_with(address, nbytes) != nullptr;
    }

    Block reserve(uint64_t nbytes);         // throws HeapFull
    Block reserve_chunks(uint64_t nbytes);  // a record of its own
    Block find(uint64_t address);  // the allocation, or reservation, that begins there: or HeapMisuse
    void release(const Block& block);
    // While a transaction has reservations, runs that look empty may be none.
    void settle() { reserved_.clear(); }

    void for_each(const std::function<void(const Block&)>& visit) const;  // every allocation
    uint64_t free_bytes() const;

private:
    using Note = Segment::Note;
    struct FreeRange {
        const Segment* segment;
        uint64_t chunk, chunks;
    };
    struct Place {
        const Segment* segment;
        uint64_t chunk;
    };
    struct CurrentRun {  // of a class: where its next units come from
        const Segment* segment = nullptr;
        uint64_t chunk = 0;
        RunShape shape = {};
        uint64_t cursor = 0;               // no word before it has a free unit
        uint64_t available[kRunWordsMax];  // neither allocated nor reserved
    };

    const Segment* segment_with(uint64_t address, uint64_t nbytes) const;
    void walk();
    void walk(Segment* segment);
    bool next_unit(CurrentRun& run, Block& block);
    bool next_run(uint32_t size_class);
    bool use_listed_run(uint32_t size_class, uint64_t tries);
    bool use_fresh_run(uint32_t size_class, bool shortest);
    static void use(CurrentRun& run, const Place& place);
    static void leave(CurrentRun& run);
    bool take(uint64_t nbytes, FreeRange& taken);
    void add_free(const FreeRange& range);
    void remove_free(std::map<uint64_t, FreeRange>::iterator range);
    bool reclaim();
    static bool is_empty(const Place& run, const RunShape& shape);
    static Block unit(const Place& run, const RunShape& shape, uint64_t index);
    uint64_t run_bytes(uint32_t size_class) const;

    Grow grow_;
    std::vector<Segment*> segments_;
    bool walked_ = false;
    uint64_t unit_bytes_max_ = 0;  // what is larger gets chunks of its own
    uint64_t run_bytes_wished_ = 0;
    std::map<uint64_t, FreeRange> free_;               // by address
    std::set<std::pair<uint64_t, uint64_t>> by_size_;  // bytes, address
    std::vector<Place> listed_[kClassCount];           // runs that may have free units
    CurrentRun current_[kClassCount];
    std::vector<uint64_t> reserved_;  // addresses of the transaction's reservations
    bool maybe_empty_ = true;         // some run has lost its last unit since we looked
};

}  // namespace bequest
