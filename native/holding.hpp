// What one process holds: regions, their parts, and the views that borrow them.
//
// Theory of operation. A Holding is the memory behind one region: a run of addresses of which this
// process owned all and may have given parts away since. Offsets into it never shift; a part that
// moved leaves a hole. Python's handles (a region, its slices) share one Holding. Every exported
// buffer is a borrow of a range; ownership of a range can change only while nobody borrows it. That
// is the whole borrow checker.
//
// Memory may be taken from us, and it may fail. Whoever does the first changes the owner word and then counts
// it in the slot (`revocations`); whenever that number has changed, we look which words still stand. Pieces
// whose words do not are *lost*; so is one whose memory failed, but that one is still ours to free. A holding
// remembers its losses, so that every later use of it says what happened.
//
// A reading of a frozen region (readings.hpp) is a Holding too: of memory that is somebody's, and stays there
// for as long as it is held, whoever that is. It has views and may fail like any other; it is never stolen.
//
// A Member is the attached process with all its holdings: when it detaches, they go.
#pragma once

#include <memory>
#include <set>
#include <vector>

#include "attachment.hpp"

namespace bequest {

class Holding;

struct Member {
    Member(Table table, uint32_t id, std::shared_ptr<AddressSpace> space, Attachment::OpenSlab open_slab)
        : attachment(table, id, std::move(space), std::move(open_slab)),
          seen_revocations(slot().revocations.load()) {}

    Slot& slot() const { return attachment.table().slot(attachment.id()); }
    bool was_robbed() const { return slot().revocations.load(std::memory_order_relaxed) != seen_revocations; }
    // These pages are bad: what holds them has lost them.
    void account_for(uint64_t start, uint64_t end, FaultKind kind);
    Holding* holding_at(uint64_t address) const;  // that has it, else one that has lost it
    size_t views_of(uint64_t start, uint64_t end) const;

    Attachment attachment;
    uint32_t seen_revocations;
    std::vector<Holding*> holdings;
    bool usable = true;  // false once detached, or in the child of a fork
};

// Finds out what is no longer theirs, and forgets all mappings but those of what is: who has fenced them from
// the rest has left traces there. All members of one address space.
void reconcile(const std::vector<std::shared_ptr<Member>>& members);

struct Span {  // byte offsets into a holding
    uint64_t start, end;
    bool overlaps(const Span& other) const { return start < other.end && other.start < end; }
    Span shifted(uint64_t by) const { return {start + by, end + by}; }
};

struct Loss {
    Span span;
    bool stolen;        // or failed
    std::string cause;  // "was stolen by 'b'"
};

class Holding : public std::enable_shared_from_this<Holding> {
public:
    Holding(std::shared_ptr<Member> member, const Extent& extent);
    explicit Holding(std::shared_ptr<Member> member);  // of no memory: a bare message
    Holding(std::shared_ptr<Member> member, const HeldReading& reading);
    ~Holding();
    Holding(const Holding&) = delete;

    uint64_t address() const { return address_; }
    uint64_t nbytes() const { return nbytes_; }
    const std::shared_ptr<Member>& member() const { return member_; }
    bool owns(const Span& span) const;                      // all of it (true for an empty span)
    std::vector<Span> remaining(const Span& within) const;  // what of it is still owned
    bool is_empty() const { return pieces_.empty(); }
    bool is_spent() const { return is_empty() && nbytes_ > 0; }

    void borrow(const Span& span) { borrows_.push_back(span); }
    void give_back(const Span& span);
    size_t borrows_of(const Span& span) const;

    // Removes exactly these pages as one extent, splitting and joining as needed. The span must be
    // page-granular and owned. Nothing if the table has no descriptor left.
    std::optional<Extent> take_out(const Span& span);
    void put_in(const Extent& extent, uint64_t offset);
    // Gives every remaining piece back to its allocator; returns the bytes freed.
    uint64_t free_all();
    uint64_t free_span(const Span& span);
    const std::vector<PlacedExtent>& pieces() const { return pieces_; }
    const std::vector<PlacedExtent>& bad() const { return bad_; }
    void forget() { pieces_.clear(), bad_.clear(); }  // for whoever detaches: the MMU frees them

    // --- losses ----------------------------------------------------------------------------------
    const Loss* loss_of(const Span& span) const;  // the first in it, or nullptr
    const Loss* loss_at(uint64_t address) const;
    const PlacedExtent* piece_at(uint64_t address) const;
    void drop_stolen();
    void drop_bad(const Span& bad, FaultKind kind);
    uint64_t free_bad(const Span& span);   // what is of no use, and still ours: the bytes freed
    bool stands(const Span& span) const;   // no word of it has changed behind our back
    bool has_bad(const Span& span) const;  // of no use, but still ours to free
    // Sealed, or being sealed: its pages may be read only.
    bool is_sealed() const;
    bool is_frozen() const;  // and ours
    bool is_reading() const { return reading_.has_value(); }
    const Extent& read_extent() const { return reading_->extent; }
    void let_go();  // of what it reads
    bool sealing = false;
    void* handle = nullptr;  // of the language above, for the memory as a whole

    std::string fate;    // why pages are gone, for the error message: "was granted to 'reducer-1'"
    bool quiet = false;  // dropping the last handle is how this one is meant to be freed
    // Memory that is one thing with this, though nobody may have a handle of it: held as long as this is.
    std::set<std::shared_ptr<Holding>> companions;

    Span pages_of(const Span& span) const;  // the pages behind a span that ends at the user's last byte

private:
    void enter();
    bool drop_if_stolen(const PlacedExtent& piece);
    bool is_lost_elsewhere(const Loss& loss) const;
    Span span_of(const PlacedExtent& piece) const {
        const uint64_t start = piece.address - address_;
        return {start, start + piece.extent.word.pages() * kPageBytes};
    }
    bool cut_at(uint64_t offset_bytes);

    std::shared_ptr<Member> member_;
    size_t place_ = 0;  // in member_->holdings
    uint64_t address_ = 0;
    uint64_t nbytes_ = 0;
    // With the addresses that they had when they were ours: a descriptor may be another extent's by now.
    std::vector<PlacedExtent> pieces_;  // sorted by address
    std::optional<HeldReading> reading_;
    std::vector<PlacedExtent> bad_;  // pieces that are still ours, and of no use
    std::vector<Loss> losses_;
    std::vector<Span> borrows_;
};

}  // namespace bequest
