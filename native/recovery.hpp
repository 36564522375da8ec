// What the Rack MMU does to the table: slabs come and go, dead processes are settled and released,
// memory leaves for another group and comes home, and everything is audited.
//
// Nothing here is on a hot path: each call reads the whole table once. All of it goes through the
// same compare-and-swap as the processes' own acts, and may run while they run.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "inbox.hpp"

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

class Steward {
public:
    explicit Steward(Table table) : table_(table), pool_(table, kMmuId) {}

    // --- slabs -----------------------------------------------------------------------------------
    bool add_slab(const SlabSpec& spec);
    bool add_slab_granted(const SlabSpec& spec, uint64_t nbytes, const Addressee& to);
    bool take_slab(uint32_t slab);  // false, and nothing changed, unless all of it is free or away
    std::vector<uint32_t> idle_slabs() const;

    // --- memory that is away in another group: OWNED by the MMU ----------------------------------
    bool withdraw(Extent extent);
    std::optional<OwnerWord> restore(Extent before_withdrawal);
    bool deliver_into(uint64_t address, uint64_t pages, uint64_t nbytes, const Addressee& to);
    uint64_t free_away(uint64_t address, uint64_t pages);

    // --- deaths ----------------------------------------------------------------------------------
    uint32_t settle(uint32_t dead);
    uint64_t release(uint32_t dead);
    Holdings holdings(uint32_t id) const;

    // Every slab's extents, sorted by address; changes under way are shown as if settled.
    std::vector<Extent> extents_of(uint32_t slab) const;
    std::vector<std::string> audit() const;
    Table table() const { return table_; }

private:
    bool write_record(const SlabSpec& spec);
    bool settle_intent(uint32_t dead);
    bool deliver(Extent from, uint64_t nbytes, const Addressee& to);
    std::optional<Extent> carve_away(uint64_t address, uint64_t pages);
    OwnerWord as_settled(uint32_t descriptor) const;

    Table table_;
    DescriptorPool pool_;
};

}  // namespace bequest
