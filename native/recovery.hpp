// What the Rack MMU does to the table: slabs come and go, dead processes are settled and released,
// memory leaves for another group and comes home, and everything is audited.
//
// Nothing here is on a hot path: each call reads the whole table once. All of it goes through the
// same compare-and-swap as the processes' own acts, and may run while they run.
#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "inbox.hpp"
#include "readings.hpp"

namespace bequest {

struct SlabSpec {
    uint32_t slab;
    uint64_t address;
    uint32_t pages;
    uint32_t element;
    bool huge;
    uint32_t home;
};
struct Addressee {  // who gets an extent by the daemon's hand, and what it is told
    uint32_t id;
    uint32_t incarnation;
    uint32_t sender;
    std::string_view tag;
};
struct Holdings {
    uint64_t extents = 0, pages = 0, free_pages = 0;
};

struct AddressRange {
    uint64_t start, bytes;
    bool touches(uint64_t address, uint64_t nbytes) const {
        return start < address + nbytes && address < start + bytes;
    }
};

// What lies in a slab, for people to look at.
struct SlabSummary {
    struct Run {  // neighbours in one state, of one owner
        uint64_t pages;
        State state;
        uint32_t id;
    };
    uint32_t slab;
    uint64_t extents = 0, free_pages = 0, free_runs = 0, largest_free_run = 0;
    std::map<uint32_t, uint64_t> owners = {};  // pages by id; without what is away
    std::vector<Run> runs = {};                // the first few
};

class Steward {
public:
    explicit Steward(Table table) : table_(table), pool_(table, kMmuId) {}

    // --- slabs -----------------------------------------------------------------------------------
    bool add_slab(const SlabSpec& spec);
    bool add_slab_granted(const SlabSpec& spec, uint64_t nbytes, const Addressee& to, uint32_t seal = 0);
    bool take_slab(uint32_t slab);  // false, and nothing changed, unless all of it is free or away
    std::vector<uint32_t> idle_slabs() const;

    // --- memory that is away in another group: OWNED by the MMU ----------------------------------
    bool withdraw(Extent extent);
    std::optional<OwnerWord> restore(Extent before_withdrawal);
    bool deliver_into(uint64_t address, uint64_t pages, uint64_t nbytes, const Addressee& to);
    uint64_t free_away(uint64_t address, uint64_t pages);

    // --- deaths ----------------------------------------------------------------------------------
    uint32_t recover();  // its own predecessor's: a Rack MMU that was killed
    uint32_t settle(uint32_t dead);
    uint64_t release(uint32_t dead);
    Holdings holdings(uint32_t id) const;

    // --- thefts (theft.cpp) ------------------------------------------------------------------------
    // What may be stolen of a process, sorted by address; all of it, or the extents that touch these ranges.
    // Extents are taken whole: they are what was allocated, or split off, as one.
    std::vector<PlacedExtent> stealable(uint32_t victim, const std::vector<AddressRange>* only = nullptr);
    // All that it owns and that touches these ranges, whether or not it may be stolen.
    std::vector<PlacedExtent> owned(uint32_t id, const std::vector<AddressRange>& only);
    // Takes exactly these, as far as their words still stand; returns what was taken, with the thief's words.
    // A victim that lives must be kept from the pages before, or nothing is gained, and again after: it may
    // have been opening some of them, and looks at its words once it has (Attachment). The thief is told
    // after that.
    std::vector<PlacedExtent> steal(const std::vector<Extent>& wanted, uint32_t victim, uint32_t thief);
    // Has it open again what is its own and a fence may have been left on (lookout.hpp).
    void have_mended(uint32_t id);
    // Whether somebody is about to open memory that it saw to be its own: by what it saw before this was
    // false nothing is opened any more.
    bool is_opening(uint32_t id) const { return table_.slot(id).openings.load() != 0; }
    // Who may empty a dead process's inbox (Attachment::inherit). False if a living process is that already.
    bool name_heir(uint32_t victim, uint32_t thief);

    // Every slab's extents, sorted by address; changes under way are shown as if settled.
    std::vector<Extent> extents_of(uint32_t slab) const;
    // Of each of these slabs that is here, in one pass over the table; beside the Steward's other work if
    // need be.
    std::vector<SlabSummary> summaries(const std::vector<uint32_t>& slabs, size_t runs_max) const;
    std::vector<PlacedExtent> sealed_in(uint32_t slab, uint32_t number) const;  // and owned by somebody
    // What lies in a slab and is read, with each of its readers.
    std::vector<std::pair<PlacedExtent, uint32_t>> read_in(uint32_t slab) const;
    // In which extent an address lies; `hint` is looked at first.
    std::optional<Extent> extent_at(uint64_t address, uint32_t hint) const;
    std::vector<std::string> audit() const;
    Table table() const { return table_; }

private:
    struct Change {
        IntentKind kind;
        uint32_t left, right;
        State state;
        OwnerWord before, after, left_now, right_now;
    };
    bool write_record(const SlabSpec& spec);
    bool free_own(Extent& extent);
    bool settle_intent(uint32_t dead);
    uint32_t settle_readings(uint32_t dead);
    bool settle_parting(uint32_t dead);
    bool free_if_forsaken(uint32_t descriptor);
    bool release_frozen(Extent extent);
    std::optional<Change> change_of(uint32_t id) const;
    void finish(const Change& change, uint32_t id, bool dead);
    void finish_for(uint32_t victim);
    enum class Which { kStealable, kAll };
    std::vector<PlacedExtent> owned_by(uint32_t id, Which which) const;
    std::vector<PlacedExtent> owned_within(uint32_t id, Which which, const std::vector<AddressRange>& only);
    std::vector<AddressRange> reach_of(const std::vector<AddressRange>& only, uint32_t victim) const;
    void help_along(uint32_t victim);
    bool deliver(Extent from, uint64_t nbytes, const Addressee& to, uint32_t seal);
    bool is_away(const PlacedExtent& placed) const;
    std::optional<Extent> carve_away(uint64_t address, uint64_t pages);
    OwnerWord as_settled(uint32_t descriptor) const;

    Table table_;
    DescriptorPool pool_;
    std::array<uint64_t, kIdCount> settled_{};  // the lives that were settled
};

}  // namespace bequest
