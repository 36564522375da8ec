// Sleeping: whoever waits for a message, or for room, is woken when there is one. The explorer ends a
// schedule in which everybody sleeps; in the field a slice of 100 ms would hide the lost wake-up.
#include "doorbell.hpp"
#include "fake_address_space.hpp"
#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint32_t kMailbox = kFirstMailboxId;
constexpr int64_t kForever = INT64_MAX / 2;

void admit(World& w, uint32_t processes) {
    for (uint32_t id = 1; id <= processes; id++) {
        w.admit(id);
        w.add_slab(id, id, 4);
        w.split_and_merge_once(id);
    }
}

void wait_and_accept(World& w, uint32_t id, uint32_t inbox_id, size_t messages) {
    const Inbox inbox(w.table, inbox_id);
    Slot& slot = w.table.slot(inbox_id);
    while (messages > 0) {
        wait_until([&] { return inbox.ready(); }, slot.doorbell, slot.sleepers, 0, kForever);
        messages -= w.accept(id, inbox_id, 1);
    }
}

// As the public face does: until there is room, or the receiver is dead.
GrantStatus wait_and_send(World& w, uint32_t id, uint32_t to, uint64_t capacity) {
    const Inbox inbox(w.table, to);
    Slot& slot = w.table.slot(to);
    for (;;) {
        const GrantStatus status = w.send(id, to, capacity);
        if (status != GrantStatus::kFull) return status;
        const auto ready = [&] { return inbox.depth() < capacity || w.table.life(to) != Life::kLive; };
        wait_until(ready, slot.space_bell, slot.space_waiters, 0, kForever);
    }
}

std::vector<Operation> for_a_grant(World& w) {
    admit(w, 2);
    w.alloc(1, 1);
    return {{"2 waits and accepts", [&] { wait_and_accept(w, 2, 2, 1); }},
            {"1 grants", [&] { w.grant(1, 2, {w.held(1)}); }}};
}

// The wake-up for the second message may come while the first is not there yet. Both have their cells
// already.
std::vector<Operation> for_two_senders(World& w) {
    admit(w, 3);
    const uint64_t first = w.begin_send(1, 2), second = w.begin_send(3, 2);
    return {{"2 waits for two", [&] { wait_and_accept(w, 2, 2, 2); }},
            {"1 publishes", [&, first] { w.end_send(1, 2, first); }},
            {"3 publishes", [&, second] { w.end_send(3, 2, second); }}};
}

// The one wake-up that is left is for two messages: whoever takes the first passes it on.
std::vector<Operation> two_for_two_senders(World& w) {
    admit(w, 4);
    w.open_mailbox(kMailbox, {2, 3});
    const uint64_t first = w.begin_send(1, kMailbox), second = w.begin_send(4, kMailbox);
    w.end_send(4, kMailbox, second);
    return {{"2 waits for one", [&] { wait_and_accept(w, 2, kMailbox, 1); }},
            {"3 waits for one", [&] { wait_and_accept(w, 3, kMailbox, 1); }},
            {"1 publishes", [&, first] { w.end_send(1, kMailbox, first); }}};
}

std::vector<Operation> beside_one_that_puts_back(World& w) {
    admit(w, 3);
    w.open_mailbox(kMailbox, {2, 3});
    w.grant(1, kMailbox, {w.alloc(1, 1)});
    return {{"2 waits for one", [&] { wait_and_accept(w, 2, kMailbox, 1); }},
            {"3 puts back", [&] {
                 opens_nothing = &w.processes.at(3)->space();
                 try {
                     w.accept(3, kMailbox);
                 } catch (const TooManyMappings&) {
                 }
                 opens_nothing = nullptr;
             }}};
}

// What was in the hand of the dead is there again, for whoever sleeps.
std::vector<Operation> beside_one_that_dies(World& w) {
    admit(w, 3);
    w.open_mailbox(kMailbox, {2, 3});
    w.send(1, kMailbox);
    return {{"3 accepts", [&] { w.accept(3, kMailbox); }},
            {"2 waits for one", [&] { wait_and_accept(w, 2, kMailbox, 1); }},
            w.mmu(
                "buries 3, and sends another if the first is gone",
                [&] {
                    w.bury(3);
                    if (Inbox(w.table, kMailbox).depth() == 0) w.send(1, kMailbox);
                },
                0)};
}

// The cell in front is a dead sender's: skipped, or delivered although its sender did not come to ringing.
std::vector<Operation> behind_a_sender_that_dies(World& w) {
    admit(w, 3);
    const uint64_t first = w.begin_send(1, 2), second = w.begin_send(3, 2);
    w.end_send(3, 2, second);
    return {{"1 publishes", [&, first] { w.end_send(1, 2, first); }},
            {"2 waits for what 3 has sent",
             [&] {
                 while (!w.came("3#0")) wait_and_accept(w, 2, 2, 1);
             }},
            w.burial(1, 0)};
}

std::vector<Operation> for_room(World& w) {
    admit(w, 2);
    w.send(1, 2);
    return {{"1 waits for room and sends", [&] { wait_and_send(w, 1, 2, 1); }},
            {"2 accepts", [&] { w.accept(2, 2); }}};
}

std::vector<Operation> for_room_that_a_dead_sender_holds(World& w) {
    admit(w, 3);
    return {{"3 sends", [&] { w.send(3, 2); }},
            {"1 waits for room and sends", [&] { wait_and_send(w, 1, 2, 1); }},
            w.burial(3, 0),
            {"2 accepts", [&] { w.accept(2, 2); }, 2}};
}

std::vector<Operation> for_room_with_one_who_dies(World& w) {
    admit(w, 2);
    w.send(1, 2);
    return {{"1 waits for room", [&] { wait_and_send(w, 1, 2, 1); }}, w.burial(2)};
}

}  // namespace

std::vector<Scenario> sleep_scenarios() {
    return {
        {"sleep: for a grant", for_a_grant},
        {"sleep: for two senders", for_two_senders},
        {"sleep: two receivers, two senders", two_for_two_senders},
        {"sleep: beside a receiver that puts back", beside_one_that_puts_back},
        {"sleep: beside a receiver that dies", beside_one_that_dies, {0}},
        {"sleep: behind a sender that dies", behind_a_sender_that_dies, {0}},
        {"sleep: for room", for_room},
        {"sleep: for room that a dead sender holds", for_room_that_a_dead_sender_holds, {0}},
        {"sleep: for room with one who dies", for_room_with_one_who_dies},
    };
}

}  // namespace bequest::tests
