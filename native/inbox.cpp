#include "inbox.hpp"

#include <algorithm>
#include <cstring>

namespace bequest {

namespace {
// In a sane ring a walk ends within one lap. The rings are writable by every member of the group, and the
// Rack MMU, which serves others too, walks them: no nonsense in them may keep it.
constexpr uint32_t kStepsMax = 4 * kInboxCells;

uint64_t lap_of(uint64_t position) { return position / kInboxCells; }
CellWord at_rest(CellState state, uint64_t position) {
    return CellWord::make(state, kNobody, lap_of(position));
}
CellWord emptied(uint64_t position) {
    return CellWord::make(CellState::kEmpty, kNobody, lap_of(position) + 1);
}
}  // namespace

bool Inbox::change(uint64_t position, CellWord from, CellWord to) const {
    const bool done = cell(position).word.compare_exchange_strong(from.bits, to.bits);
    BEQUEST_STEP("cell changed");
    return done;
}

std::optional<uint64_t> Inbox::claim(uint32_t sender, uint64_t capacity) const {
    Shared<uint64_t>& tail = table_.slot(id_).tail;
    uint64_t position = tail.load();
    for (uint32_t steps = 0; steps < kStepsMax; steps++) {
        // The cells themselves tell when all of them are in use; the receiver's head is looked at only for
        // less.
        if (capacity < kInboxCells && position >= table_.slot(id_).head.load() + capacity)
            return std::nullopt;
        const CellWord seen{cell(position).word.load()};
        if (seen == at_rest(CellState::kEmpty, position)) {
            const CellWord claimed = CellWord::make(CellState::kClaimed, sender, lap_of(position));
            if (change(position, seen, claimed)) {
                uint64_t expected = position;  // somebody may have moved the tail for us already
                tail.compare_exchange_strong(expected, position + 1);
                BEQUEST_STEP("tail moved");
                return position;
            }
        } else if (seen.lap() < lap_of(position)) {
            const uint64_t again = tail.load();
            if (again == position) return std::nullopt;  // full: not consumed since the last lap
            position = again;
        } else if (tail.compare_exchange_strong(position, position + 1)) {
            position++;  // somebody claimed it and has not moved the tail yet
        }
    }
    return std::nullopt;
}

size_t Inbox::room_for(size_t wanted, uint64_t capacity) const {
    if (wanted == 1 && capacity >= kInboxCells) {
        const uint64_t position = table_.slot(id_).tail.load();
        return CellWord{cell(position).word.load()}.lap() >= lap_of(position) ? 1 : 0;
    }
    const uint64_t waiting = depth();
    return waiting >= capacity ? 0 : std::min<uint64_t>(wanted, capacity - waiting);
}

void Inbox::seal(uint64_t position, const Extent& in_flight, uint32_t incarnation, const Peer& sender,
                 std::string_view tag) const {
    Cell& c = cell(position);
    c.extent_word = in_flight.word.bits;
    c.descriptor = in_flight.descriptor;
    c.incarnation = incarnation;
    c.sender_incarnation = sender.incarnation;
    c.sender = static_cast<uint16_t>(sender.id);
    c.tag_bytes = static_cast<uint16_t>(tag.size());
    std::memcpy(c.tag, tag.data(), tag.size());
    c.sealed_at.store(position + 1);
    BEQUEST_STEP("cell sealed");
}

bool Inbox::publish(uint64_t position, uint32_t sender) const {
    return change(position, CellWord::make(CellState::kClaimed, sender, lap_of(position)),
                  at_rest(CellState::kFull, position));
}

void Inbox::abandon(uint64_t position, uint32_t sender) const {
    change(position, CellWord::make(CellState::kClaimed, sender, lap_of(position)),
           at_rest(CellState::kSkip, position));
}

std::optional<uint64_t> Inbox::take(uint32_t receiver, Delivery& delivery) const {
    Shared<uint64_t>& head = table_.slot(id_).head;
    uint64_t position = head.load();
    for (uint32_t steps = 0; steps < kStepsMax; steps++) {
        const CellWord seen{cell(position).word.load()};
        const bool this_lap = seen.lap() == lap_of(position);
        if (seen.lap() < lap_of(position)) return std::nullopt;
        if (this_lap && (seen.state() == CellState::kEmpty || seen.state() == CellState::kClaimed)) {
            return std::nullopt;
        }
        if (this_lap && seen.state() == CellState::kFull) {
            const CellWord taking = CellWord::make(CellState::kTaking, receiver, lap_of(position));
            if (!change(position, seen, taking)) continue;
            const Cell& c = cell(position);
            delivery.extent = {c.descriptor, {c.extent_word}};
            delivery.incarnation = c.incarnation;
            delivery.sender = {c.sender % kIdCount, c.sender_incarnation};
            delivery.tag_bytes = c.tag_bytes < kTagBytesMax ? c.tag_bytes : kTagBytesMax;
            std::memcpy(delivery.tag, c.tag, delivery.tag_bytes);
            uint64_t expected = position;
            head.compare_exchange_strong(expected, position + 1);
            BEQUEST_STEP("head moved");
            return position;
        }
        if (this_lap && seen.state() == CellState::kSkip) {
            change(position, seen, emptied(position));
            continue;
        }
        // Consumed, or in another receiver's hands: go past it. It may be put back meanwhile.
        uint64_t expected = position;
        if (head.compare_exchange_strong(expected, position + 1)) {
            BEQUEST_STEP("head helped");
            if (CellWord{cell(position).word.load()} == at_rest(CellState::kFull, position)) {
                lower_head(position);
                expected = position;
            } else {
                expected = position + 1;
            }
        }
        position = expected;
    }
    return std::nullopt;
}

void Inbox::finish(uint64_t position, uint32_t receiver) const {
    change(position, CellWord::make(CellState::kTaking, receiver, lap_of(position)), emptied(position));
}

void Inbox::put_back(uint64_t position, uint32_t receiver) const {
    const CellWord taking = CellWord::make(CellState::kTaking, receiver, lap_of(position));
    if (change(position, taking, at_rest(CellState::kFull, position))) lower_head(position);
}

void Inbox::lower_head(uint64_t position) const {
    Shared<uint64_t>& head = table_.slot(id_).head;
    uint64_t seen = head.load();
    while (seen > position && !head.compare_exchange_weak(seen, position)) {
    }
    BEQUEST_STEP("head lowered");
}

bool Inbox::ready() const {
    const uint64_t position = table_.slot(id_).head.load();
    const CellWord seen{cell(position).word.load()};
    if (seen.lap() > lap_of(position)) return true;
    return seen.lap() == lap_of(position) && seen.state() != CellState::kEmpty &&
           seen.state() != CellState::kClaimed;
}

uint64_t Inbox::depth() const {
    const uint64_t head = table_.slot(id_).head.load(), tail = table_.slot(id_).tail.load();
    return tail > head ? tail - head : 0;
}

// Up to the tail, which may lag by one. Cells beyond it have never been used in this lap, and are left alone:
// looking at all of an empty inbox costs a page fault for every 16 cells of it.
uint32_t Inbox::settle(uint32_t dead) const {
    const uint64_t tail = table_.slot(id_).tail.load();
    const uint64_t used = std::min<uint64_t>(tail, kInboxCells);
    uint32_t settled = 0;
    for (uint64_t back = used + 1; back-- > 0;) {
        const uint64_t position = tail - back;
        settled += settle_cell(position, dead);
        // It may have died helping the head along, before it had looked whether the cell was put back
        // meanwhile.
        if (CellWord{cell(position).word.load()} == at_rest(CellState::kFull, position)) lower_head(position);
    }
    return settled;
}

uint32_t Inbox::unblock(uint32_t sender) const {
    const uint64_t head = table_.slot(id_).head.load(), tail = table_.slot(id_).tail.load();
    uint32_t unblocked = 0;
    for (uint64_t position = head; position <= tail && position - head <= kInboxCells; position++)
        unblocked += unblock_cell(position, sender);
    return unblocked;
}

// Once sealed the cell is read-only to its sender, but for its word.
bool Inbox::unblock_cell(uint64_t position, uint32_t sender) const {
    const Cell& c = cell(position);
    const CellWord seen{c.word.load()};
    if (!(seen == CellWord::make(CellState::kClaimed, sender, lap_of(position)))) return false;
    if (c.sealed_at.load() != position + 1) return false;  // it may be writing to it
    const Extent granted{c.descriptor, {c.extent_word}};
    if (granted.descriptor >= kMaxExtents) return false;  // a bare message, which needs no commit
    const OwnerWord now = table_.owner(granted.descriptor);
    const bool may_commit =
        now.is(State::kOwned, sender) && now.next(State::kInFlight, granted.word.id()) == granted.word;
    if (may_commit) return false;
    const bool committed = now == granted.word;
    return change(position, seen, at_rest(committed ? CellState::kFull : CellState::kSkip, position));
}

bool Inbox::settle_cell(uint64_t position, uint32_t dead) const {
    const Cell& c = cell(position);
    const CellWord seen{c.word.load()};
    if (seen.lap() != lap_of(position) || seen.id() != dead) return false;
    const bool complete = c.sealed_at.load() == position + 1;
    const bool with_memory = c.descriptor < kMaxExtents;
    const OwnerWord now = with_memory ? table_.owner(c.descriptor) : OwnerWord{};
    if (seen.state() == CellState::kClaimed) {
        // The owner word is the commit point: granted means deliver, else the sender still had it.
        const bool committed = complete && with_memory && now.bits == c.extent_word;
        return change(position, seen, at_rest(committed ? CellState::kFull : CellState::kSkip, position));
    }
    if (seen.state() == CellState::kTaking) {
        const bool accepted = with_memory && now.bits != c.extent_word;
        if (accepted) return change(position, seen, emptied(position));
        if (!change(position, seen, at_rest(CellState::kFull, position))) return false;
        lower_head(position);
        return true;
    }
    return false;
}

}  // namespace bequest
