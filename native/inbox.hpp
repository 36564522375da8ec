// Inboxes: bounded rings in shared memory, many senders, one receiver (a process) or many (a mailbox).
//
// Theory of operation. A position counts up for ever; its cell is position % kInboxCells and its lap
// position / kInboxCells. Each cell is a state machine of its own (layout.hpp) driven by
// compare-and-swap, and says which process has it in hand, so that `head` and `tail` are only hints
// that anyone may help along, and a process that dies holding a cell can be settled by another.
#pragma once

#include <string_view>

#include "v2p_table.hpp"

namespace bequest {

struct Peer {  // a process or a mailbox, and the life of it that is meant
    uint32_t id = kNobody;
    uint32_t incarnation = 0;
};

struct Delivery {   // what a cell carries
    Extent extent;  // descriptor == kNoDescriptor: a message without memory
    uint32_t incarnation = 0;
    Peer sender;
    uint32_t tag_bytes = 0;
    unsigned char tag[kTagBytesMax];
};

class Inbox {
public:
    Inbox(Table table, uint32_t id) : table_(table), id_(id) {}

    // --- senders: claim, seal, [commit the grant], publish or abandon --------------------------
    // The claimed position; nothing if `capacity` messages are already waiting.
    std::optional<uint64_t> claim(uint32_t sender, uint64_t capacity = kInboxCells) const;
    // How many of `wanted` claims would succeed now (a hint).
    size_t room_for(size_t wanted, uint64_t capacity = kInboxCells) const;
    void seal(uint64_t position, const Extent& in_flight, uint32_t incarnation, const Peer& sender,
              std::string_view tag) const;
    bool publish(uint64_t position, uint32_t sender) const;
    void abandon(uint64_t position, uint32_t sender) const;

    // --- receivers: take, [accept the extent], finish or put back -------------------------------
    std::optional<uint64_t> take(uint32_t receiver, Delivery& delivery) const;
    void finish(uint64_t position, uint32_t receiver) const;
    void put_back(uint64_t position, uint32_t receiver) const;

    bool ready() const;      // whether take() would find something (a hint)
    uint64_t depth() const;  // messages waiting (a hint)

    // --- for the daemon, after `dead` has died: every cell it had in hand, and what it hid --------
    uint32_t settle(uint32_t dead) const;
    // Of a sender that lives but has lost memory: cells of its that wait for a commit which has happened, or
    // can happen no more.
    uint32_t unblock(uint32_t sender) const;

private:
    Cell& cell(uint64_t position) const { return table_.cell(id_, position); }
    bool change(uint64_t position, CellWord from, CellWord to) const;
    void lower_head(uint64_t position) const;
    bool settle_cell(uint64_t position, uint32_t dead) const;
    bool unblock_cell(uint64_t position, uint32_t sender) const;

    Table table_;
    uint32_t id_;
};

}  // namespace bequest
