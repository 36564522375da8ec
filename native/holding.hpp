// What one process holds: regions, their parts, and the views that borrow them.
//
// Theory of operation. A Holding is the memory behind one region: a run of addresses of which this
// process owned all and may have given parts away since. Offsets into it never shift; a part that
// moved leaves a hole. Python's handles (a region, its slices) share one Holding. Every exported
// buffer is a borrow of a range; ownership of a range can change only while nobody borrows it. That
// is the whole borrow checker.
//
// A Member is the attached process with all its holdings: when it detaches, they go.
#pragma once

#include <memory>
#include <vector>

#include "attachment.hpp"

namespace bequest {

class Holding;

struct Member {
    Member(Table table, uint32_t id, std::shared_ptr<AddressSpace> space, Attachment::OpenSlab open_slab)
        : attachment(table, id, std::move(space), std::move(open_slab)) {}
    Attachment attachment;
    std::vector<Holding*> holdings;
    bool usable = true;  // false once detached, or in the child of a fork
};

struct Span {  // byte offsets into a holding
    uint64_t start, end;
    bool overlaps(const Span& other) const { return start < other.end && other.start < end; }
};

class Holding {
public:
    Holding(std::shared_ptr<Member> member, const Extent& extent);
    explicit Holding(std::shared_ptr<Member> member);  // of no memory: a bare message
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
    void put_in(const Extent& extent);
    // Gives every remaining piece back to its allocator; returns the bytes freed.
    uint64_t free_all();
    uint64_t free_span(const Span& span);
    const std::vector<Extent>& pieces() const { return pieces_; }
    void forget() { pieces_.clear(); }  // for whoever detaches: the MMU frees them

    std::string fate;    // why pages are gone, for the error message: "was granted to 'reducer-1'"
    bool quiet = false;  // dropping the last handle is how this one is meant to be freed

    Span pages_of(const Span& span) const;  // the pages behind a span that ends at the user's last byte

private:
    void enter();
    uint64_t offset(const Extent& e) const { return member_->attachment.address(e) - address_; }
    Span span_of(const Extent& e) const { return {offset(e), offset(e) + e.word.pages() * kPageBytes}; }
    bool cut_at(uint64_t offset_bytes);

    std::shared_ptr<Member> member_;
    size_t place_ = 0;  // in member_->holdings
    uint64_t address_ = 0;
    uint64_t nbytes_ = 0;
    std::vector<Extent> pieces_;  // sorted by address
    std::vector<Span> borrows_;
};

}  // namespace bequest
