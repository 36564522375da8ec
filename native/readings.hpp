// Who reads which frozen region: what lets many read one region, and never frees it under them.
//
// Theory of operation. A frozen extent has no writer, so there is nothing to keep coherent: whoever knows
// where it lies may open its pages for reading. Somebody *keeps* it (its word bears the keeper's id), which
// is as much as owning it: it is charged to the keeper, part of its estate, and stolen with that. What must
// be known besides is that somebody reads. Each reading is a record in the table, reader and extent, and is
// worked like a hazard pointer:
//
//   read     claim a record -> is the word FROZEN still, and of the region that was meant? -> open the pages
//   let go   close the pages -> clear the record -> *look* whether it was the last of what nobody keeps
//   thaw     FROZEN -> THAWING, which lets nobody in -> is there a record? -> OWNED, or back to FROZEN
//   free     FROZEN(keeper) -> FROZEN(nobody): from here on it is its readers' together -> *look*
//
//   look     is it FROZEN(nobody), and without a record? -> THAWING(self) -> is there none still? ->
//   OWNED(self),
//            to be freed by us like anything of our own; or back, and look again
//
// All of that is sequentially consistent. A reader that has seen FROZEN had its record in the table before;
// whoever made the word THAWING later looks at the records after that, and sees it. A reader whose record is
// in the table too late sees THAWING or what follows, and withdraws, which is letting go. Of several that let
// go at once, the last to clear its record finds none when it looks; and who looks while another has it
// THAWING leaves it to that one, who looks again when it has put it back. So it is freed, and once: the swap
// of the word decides.
//
// Anybody may be killed anywhere. Who is about to look says so in its slot before the first step
// (`Slot.parting`); settling its death ends what it had THAWING and looks in its place. The records of the
// dead are cleared, and what nobody keeps is *inherited* with that: it becomes part of the estate of the
// reader that died, lest memory is lost which only the dead one's heir can name. So a keeper that frees
// bequeaths to its readers.
//
// A record does not say which life of its extent it means. It need not: while a record stands whose reader
// has seen FROZEN the extent is not freed, and who looks looks at what is there now.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "v2p_table.hpp"

namespace bequest {

// A frozen region by name: the same whoever keeps it.
struct FrozenName {
    uint32_t descriptor;
    uint64_t birth, address;
};

class TooManyReadings : public std::runtime_error {
public:
    TooManyReadings()
        : std::runtime_error("this group has " + std::to_string(kMaxReadings) +
                             " readings of frozen regions under way, and can have no more; close some") {}
};

enum class Thaw { kDone, kIsRead, kLost };

bool is_read(const Table& table, uint32_t descriptor);
std::vector<uint32_t> readers_of(const Table& table, uint32_t descriptor);  // each of them once
// Looks: the extent, `self`'s own by now, if nobody keeps it and nobody reads it.
std::optional<Extent> take_if_forsaken(const Table& table, uint32_t self, uint32_t descriptor);

// One process's own. Not thread-safe, as the attachment that it is part of.
class Readings {
public:
    Readings(Table table, uint32_t self) : table_(table), self_(self) {}

    enum class Begun { kDone, kGone, kNoRecord };
    struct Reading {
        Begun begun;
        uint32_t record;
        Extent extent;                   // with the word that it had then
        std::optional<Extent> forsaken;  // when it is gone: ours to be freed, see `end`
    };
    Reading begin(const FrozenName& name);
    // What is to be freed for it, closed: this was the last reader of what nobody keeps.
    std::optional<Extent> end(uint32_t record);

    Thaw thaw(Extent& extent);
    // The keeper lets go. False if it has been stolen; else as `end`.
    bool forsake(Extent extent, std::optional<Extent>& forsaken);

private:
    Thaw thaw_unless_read(Extent& extent);
    std::optional<uint32_t> claim(uint32_t descriptor);
    bool claim_at(uint32_t record, uint32_t descriptor);

    Table table_;
    uint32_t self_;
    std::vector<uint32_t> spare_;  // records that were ours: most likely nobody has taken them since
    uint32_t next_ = 0;            // where to look for another one
};

}  // namespace bequest
