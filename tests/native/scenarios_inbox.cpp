// Inboxes: rings that are nearly full or go round, and mailboxes with several receivers.
#include "fake_address_space.hpp"
#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint32_t kMailbox = kFirstMailboxId;

void admit(World& w, uint32_t processes) {
    for (uint32_t id = 1; id <= processes; id++) w.admit(id);
}

// Senders on a ring with little room: it never holds more than the capacity, and is not called full when
// empty.
std::vector<Operation> nearly_full(World& w, uint64_t position) {
    admit(w, 3);
    w.start_ring_at(2, position);
    w.also = [&w]() -> std::string {
        if (Inbox(w.table, 2).depth() > 1) return "more messages wait than the capacity allows";
        return w.sent() == 0 ? "an empty inbox was called full" : "";
    };
    return {{"1 sends, if nobody waits", [&] { w.send(1, 2, 1); }},
            {"3 sends, if nobody waits", [&] { w.send(3, 2, 1); }},
            {"2 accepts", [&] { w.accept(2, 2, 1); }}};
}

std::vector<Operation> two_sends_each(World& w) {
    admit(w, 3);
    w.start_ring_at(2, kInboxCells - 1);
    return {{"1 sends twice", [&] { w.send(1, 2), w.send(1, 2); }},
            {"3 sends twice", [&] { w.send(3, 2), w.send(3, 2); }}};
}

std::vector<Operation> really_full(World& w) {
    admit(w, 3);
    for (uint32_t i = 0; i < kInboxCells - 1; i++) w.send(1, 2);
    return {{"1 sends", [&] { w.send(1, 2); }}, {"3 sends", [&] { w.send(3, 2); }}, {"2 accepts one", [&] {
                                                                                         w.accept(2, 2, 1);
                                                                                     }}};
}

std::vector<Operation> send_overtakes_a_slow_one(World& w) {
    admit(w, 3);
    return {{"1 sends", [&] { w.send(1, 2); }},
            {"3 sends twice", [&] { w.send(3, 2), w.send(3, 2); }},
            {"2 accepts", [&] { w.accept(2, 2); }}};
}

std::vector<Operation> mailbox(World& w) {
    admit(w, 3);
    w.open_mailbox(kMailbox, {2, 3});
    return {{"1 sends twice", [&] { w.send(1, kMailbox), w.send(1, kMailbox); }},
            {"2 accepts one", [&] { w.accept(2, kMailbox, 1); }},
            {"3 accepts one", [&] { w.accept(3, kMailbox, 1); }}};
}

void accept_in_vain(World& w, uint32_t id, uint32_t inbox) {
    opens_nothing = &w.processes.at(id)->space();
    try {
        w.accept(id, inbox);
    } catch (const TooManyMappings&) {
    }
    opens_nothing = nullptr;
}

// One receiver puts back what it took, while the other is on its way past it.
std::vector<Operation> put_back_beside_a_receiver(World& w) {
    admit(w, 3);
    w.add_slab(1, 1, 8);
    w.open_mailbox(kMailbox, {2, 3});
    w.alloc(1, 1);
    w.grant(1, kMailbox, {w.held(1)});
    w.send(1, kMailbox);
    return {{"2 puts back", [&] { accept_in_vain(w, 2, kMailbox); }},
            {"3 accepts one", [&] { w.accept(3, kMailbox, 1); }}};
}

std::vector<Operation> put_back_twice(World& w) {
    admit(w, 3);
    w.add_slab(1, 1, 8);
    w.open_mailbox(kMailbox, {2, 3});
    w.alloc(1, 1);
    w.grant(1, kMailbox, {w.held(1)});
    return {{"2 puts back", [&] { accept_in_vain(w, 2, kMailbox); }},
            {"3 puts back", [&] { accept_in_vain(w, 3, kMailbox); }},
            {"1 sends", [&] { w.send(1, kMailbox); }}};
}

// Put back into a ring with room for one: the senders may not run over it.
std::vector<Operation> put_back_into_a_full_ring(World& w) {
    admit(w, 3);
    w.add_slab(1, 1, 8);
    w.open_mailbox(kMailbox, {2, 3});
    w.start_ring_at(kMailbox, 5 * kInboxCells - 1);
    w.alloc(1, 1);
    w.grant(1, kMailbox, {w.held(1)});
    return {{"1 sends, if nobody waits", [&] { w.send(1, kMailbox, 1); }},
            {"2 puts back", [&] { accept_in_vain(w, 2, kMailbox); }},
            {"3 accepts one", [&] { w.accept(3, kMailbox, 1); }}};
}

}  // namespace

std::vector<Scenario> inbox_scenarios() {
    return {
        {"inbox: two senders, room for one", [](World& w) { return nearly_full(w, 0); }},
        {"inbox: two senders, room for one, where the ring goes round",
         [](World& w) { return nearly_full(w, 2 * kInboxCells - 1); }},
        {"inbox: two senders, two messages each, where the ring goes round", two_sends_each},
        {"inbox: one cell of all is left", really_full},
        {"inbox: a fast sender overtakes a slow one", send_overtakes_a_slow_one},
        {"mailbox: two receivers", mailbox},
        {"mailbox: put back while another receiver goes past", put_back_beside_a_receiver},
        {"mailbox: both put back", put_back_twice},
        {"mailbox: put back into a ring that fills", put_back_into_a_full_ring},
    };
}

}  // namespace bequest::tests
