// One attached process's end of the data plane: alloc, free, split, merge, grant, accept.
//
// This is where the table (who owns) meets the address space (who can touch). The order is always
// the same, and is what makes ownership exclusive at every instant:
//
//   grant:   close own pages -> claim a cell -> CAS the owner word (the commit point) -> publish the cell
//   accept:  take the cell -> open own pages -> CAS the owner word (the commit point) -> finish the cell
//   free:    close own pages (unless they stay at home) -> CAS -> put on the home's return list
//   adopt:   open own pages -> CAS the owner word, to a new epoch (the commit point)
//   freeze:  close own pages for writing -> CAS the owner word (the commit point)
//   thaw:    CAS the owner word, if nobody reads (readings.hpp) -> open own pages for writing
//   read:    claim a record -> look at the owner word -> open the pages for reading
//
// Memory may be stolen from us between any two steps. The thief's Rack MMU changes the word, then keeps us
// from the pages, then tells the thief. So whenever we open pages whose word says that they are ours already,
// we look at the word once more after that, and close them if it does not: either we see the change, or we
// were kept out after we had opened them.
//
// Not thread-safe; the binding serialises calls by the GIL. `open_slab` is called when a slab is
// not mapped yet: it asks the memory element for its file and returns a descriptor for us to close.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "address_space.hpp"
#include "arena.hpp"
#include "inbox.hpp"
#include "readings.hpp"

namespace bequest {

struct Accepted {
    Extent extent;  // descriptor == kNoDescriptor: a message without memory
    Peer sender;
    std::string tag;
};
struct HeldReading {  // of a frozen region, open for reading
    uint32_t record;
    Extent extent;  // with the word that it had when it was opened: its keeper may be another by now
    uint64_t address;
};
enum class GrantStatus { kDone, kFull, kDead, kLost };
struct GrantResult {
    GrantStatus status;
    size_t granted;                   // that many, from the front, have changed hands
    std::exception_ptr trouble = {};  // what has kept us from opening again what stays ours
};

class Attachment {
public:
    using OpenSlab = std::function<OpenedSlab(uint32_t slab)>;
    Attachment(Table table, uint32_t id, std::shared_ptr<AddressSpace> space, OpenSlab open_slab);

    std::optional<Extent> alloc(const RunRequest& request, uint64_t nbytes, uint32_t flags = 0);
    bool free(Extent extent);
    bool free_failed(Extent extent);  // its memory is gone: nobody is given it again
    std::optional<Extent> split(Extent& left, uint64_t pages);
    bool merge(Extent& left, Extent& right);

    // At most `capacity` messages may be waiting there already. On kFull and kDead what was not
    // granted is open again; on kLost extents[granted] is no longer ours.
    GrantResult grant(const Peer& to, std::vector<Extent>& extents, std::string_view tag,
                      uint64_t capacity = kInboxCells);
    GrantStatus send(const Peer& to, std::string_view message, uint64_t capacity = kInboxCells);
    // Up to `limit` messages waiting in `inbox`: this process's id or a mailbox's.
    std::vector<Accepted> accept(uint32_t inbox, size_t limit) {
        return accept(inbox, table_.incarnation(inbox), limit);
    }

    // What the Rack MMU has stolen for us from that life of a process and we do not hold yet: opened, and
    // sorted by address. Throws if it cannot be opened, and then nothing of it is.
    using IsHeld = std::function<bool(const Extent&)>;
    std::vector<Extent> adopt(const Peer& victim, const IsHeld& is_held);
    void count_resumed();  // work that another had half done is gone on with
    // Maps, closed, the slabs in which it owns memory that may be stolen: for who is about to adopt that.
    void map_ahead(uint32_t victim);
    // Up to `limit` messages that wait for a dead process whose heir we are.
    std::vector<Accepted> inherit(const Peer& dead, size_t limit);

    // A sealed region has its pages closed for writing, whoever owns it (layout.hpp, Seal).
    void protect_pages(const Extent& extent);
    bool seal(const Extent& extent, uint32_t number);  // false: it is not ours any more
    bool unseal(const Extent& extent);                 // opens them for writing again

    // Frozen regions (readings.hpp).
    bool freeze(Extent& extent);  // false: it is not ours any more
    Thaw thaw(Extent& extent);
    // Nothing if it is not there, or not frozen, any more. Throws if it cannot be opened, or if there is no
    // record left for it.
    std::optional<HeldReading> read(const FrozenName& name);
    void let_go(const HeldReading& reading);

    void close_pages(const Extent& extent);
    void open_pages(const Extent& extent);
    void map_anew(const std::vector<Extent>& extents);     // ours, with what was done to their mappings gone
    void close_pages(const std::vector<Extent>& extents);  // neighbours in one step

    uint64_t address(const Extent& e) const { return table_.extent(e.descriptor).address; }
    uint64_t nbytes(const Extent& e) const;
    bool still_ours(const Extent& e) const { return table_.owner(e.descriptor) == e.word; }
    uint32_t id() const { return id_; }
    Table table() const { return table_; }
    AddressSpace& space() { return *space_; }
    const Arena& arena() const { return arena_; }

private:
    using Range = AddressSpace::Range;
    std::vector<Range> neighbours_joined(const std::vector<Extent>& extents, size_t count) const;
    void put_home(Extent extent);  // of an extent that has never left
    bool give_home(Extent extent);
    bool free_frozen(Extent extent);
    void open_to_read(const HeldReading& reading);
    bool ensure_mapped(const Extent& extent);
    bool ensure_mapped(uint32_t slab, uint64_t start, uint64_t bytes);
    void open_mapped(const std::vector<Extent>& extents, const std::vector<Range>& ranges);
    size_t take_back(const Inbox& inbox, std::vector<Extent>& extents, size_t committed,
                     const std::vector<uint64_t>& cells);
    std::vector<Accepted> accept(uint32_t inbox, uint32_t incarnation, size_t limit);
    bool is_for_us(const Delivery& delivery, const Peer& addressee);
    template <class Change>
    bool change_while_ours(const Extent& extent, Change change);
    void reopen(const Extent& extent);
    void respect_limits(const Extent& extent);
    std::exception_ptr reopen_all(const std::vector<Extent>& extents, size_t from, size_t to);
    std::vector<PlacedExtent> stolen_from(const Peer& victim, const IsHeld& is_held) const;
    size_t count_ours(const std::vector<Extent>& extents) const;
    void open_all(const std::vector<Extent>& extents, const std::vector<Range>& ranges);

    Table table_;
    uint32_t id_, incarnation_;
    std::shared_ptr<AddressSpace> space_;
    OpenSlab open_slab_;
    DescriptorPool pool_;
    Arena arena_;
    Readings readings_;
};

}  // namespace bequest
