// What must hold, told a second time: an oracle that knows the layout of the table and nothing of its code.
//
// Each function returns what is wrong, or nothing. They take a table at rest: nobody is in the middle of a
// change, unless dead and not settled yet. Pages are looked at one by one, for a test's slabs have few.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "layout.hpp"
#include "v2p_table.hpp"

namespace bequest::tests {

struct Page {
    State state;
    uint32_t owner;
    uint32_t descriptor;
};
using Pages = std::map<uint64_t, Page>;  // by address

inline std::string at(uint64_t address) {
    char text[40];
    std::snprintf(text, sizeof text, "page %#lx", address);
    return text;
}

// What an extent counts for, were every armed intent settled: a split adds its right side when the left has
// shrunk, a merge removes it when the left has grown.
inline State state_of(const Table& table, uint32_t descriptor) {
    const OwnerWord word = table.owner(descriptor);
    if (word.state() != State::kEmbryo) return word.state();
    const Intent& intent = table.slot(word.id()).intent;
    const uint32_t kind = intent.armed.load() % 4;
    if (kind == 0 || intent.right != descriptor) return State::kEmpty;
    const bool committed = table.owner(intent.left).bits == intent.after;
    const bool counts = (kind == static_cast<uint32_t>(IntentKind::kSplit)) == committed;
    return counts ? static_cast<State>(uint32_t{intent.settled_state}) : State::kEmpty;
}

// Every page of every slab, with its one owner.
inline std::string partition(const Table& table, Pages& pages) {
    pages.clear();
    for (uint32_t i = 0; i < table.header().blocks_used.load() * kExtentsPerBlock; i++) {
        const OwnerWord word = table.owner(i);
        const State state = state_of(table, i);
        if (state == State::kEmpty) continue;
        const Descriptor& d = table.extent(i);
        if (!table.has_slab(d.slab)) return at(d.address) + " belongs to a slab that is not there";
        if (word.id() == kNobody) return at(d.address) + " belongs to nobody";
        for (uint64_t page = 0; page < word.pages(); page++) {
            const uint64_t address = d.address + page * kPageBytes;
            if (!pages.insert({address, {state, word.id(), i}}).second)
                return at(address) + " has two owners";
        }
    }
    size_t expected = 0;
    for (uint32_t i = 0; i < table.header().slabs_used.load(); i++) {
        const SlabRecord& slab = table.slab_record(i);
        if (slab.id_plus_one.load() == 0) continue;
        expected += slab.pages;
        for (uint64_t page = 0; page < slab.pages; page++)
            if (pages.count(slab.address + page * kPageBytes) == 0)
                return at(slab.address + page * kPageBytes) + " has no owner";
    }
    return expected == pages.size() ? "" : "an extent reaches beyond its slab";
}

// The cells of an inbox in which nobody is busy.
inline std::string cells_at_rest(const Table& table, uint32_t id) {
    const uint64_t head = table.slot(id).head.load(), tail = table.slot(id).tail.load();
    const std::string inbox = "inbox " + std::to_string(id) + ": ";
    if (head > tail + 1) return inbox + "its head is beyond its tail";
    if (tail > head + kInboxCells) return inbox + "its tail has overtaken its head";
    const uint64_t first = tail > kInboxCells ? tail - kInboxCells : 0;
    for (uint64_t position = first; position <= tail; position++) {
        const CellWord word{table.cell(id, position).word.load()};
        const std::string cell = inbox + "the cell at " + std::to_string(position);
        if (word.lap() != position / kInboxCells) continue;  // its ring has gone round
        if (word.state() == CellState::kClaimed || word.state() == CellState::kTaking)
            return cell + " is in the hand of " + std::to_string(word.id()) + " for ever";
        if (word.state() == CellState::kFull && position < head) return cell + " is full and behind the head";
        if (word.state() == CellState::kEmpty && position >= head && position < tail)
            return cell + " is empty between head and tail";
    }
    return "";
}

struct Message {  // as a test knows what was sent and what came; the regions of one grant share its tag
    uint32_t sender, inbox;
    std::string tag;
    int at_least = 1, at_most = 1;  // a sender that died on the way, or a receiver, leaves this open
    uint32_t incarnation = 1;       // of the receiver that was meant
};

inline std::string exactly_once(const std::vector<Message>& sent, const std::vector<Message>& received) {
    std::map<std::string, int> times;
    for (const Message& m : received) times[m.tag]++;
    for (const Message& m : sent) {
        const int came = times[m.tag];
        if (came < m.at_least || came > m.at_most)
            return "message " + m.tag + " arrived " + std::to_string(came) + " times, not " +
                   std::to_string(came < m.at_least ? m.at_least : m.at_most);
        times.erase(m.tag);
    }
    return times.empty() ? "" : "message " + times.begin()->first + " arrived and nobody sent it";
}

// What one sender sends to one receiver arrives in the order of its sending.
inline std::string in_order(const std::vector<Message>& sent, const std::vector<Message>& received) {
    std::map<std::string, size_t> place;
    for (size_t i = 0; i < sent.size(); i++) place[sent[i].tag] = i;
    std::map<std::pair<uint32_t, uint32_t>, size_t> last;
    for (const Message& m : received) {
        const auto [before, first] = last.try_emplace({m.sender, m.inbox}, place[m.tag]);
        if (!first && before->second > place[m.tag])
            return "message " + sent[before->second].tag + " came before " + m.tag;
        before->second = place[m.tag];
    }
    return "";
}

}  // namespace bequest::tests
