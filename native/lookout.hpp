// What the small thread of an attached process (liveness.hpp) sees to beside its lifeline.
//
// Theory of operation. A fence by write protection lets loads through: a view of stolen memory would show
// what its new owner writes, until the library happens to look at its words. So whoever steals rings
// (`Slot.revocations` is a futex), and this thread closes what is somebody else's by now, as a fence by
// ptrace does from outside: whoever touches it faults and is told. It needs neither the GIL nor the holdings,
// only the table and the window lock, and changes nothing that the library believes; that is put right by
// `reconcile`.
//
// What holds: a load that runs after the thread has been here raises. It comes as soon as the scheduler lets
// it; a load before that may have shown the new owner's bytes, and nothing says so.
//
// A fence may be left on what is ours: it came to nothing, and could not be lifted, or was one by ptrace,
// which nobody lifts from outside. When the Rack MMU says so (`Slot.mends`), this thread opens again what the
// address space believes to be open and the table says is ours, and where that does not help maps it again.
// As with all that is opened, the words are looked at once more after that. It takes what it has to do in
// slices, lest its beats fail. What it cannot mend in two seconds nobody waits for any more.
//
// It also knows, for the fault handler, whether memory is still this process's (fault_barrier.hpp).
//
// Handlers of signals that were installed after ours are noticed here as well, and what the hardware has lost
// without anybody's touching it.
#pragma once

#include <atomic>

#include "fault_barrier.hpp"
#include "v2p_table.hpp"

namespace bequest {

constexpr int64_t kLookInterval_ns = 250'000'000;

class Lookout final : public Deeds {
public:
    Lookout(Table table, uint32_t id);
    ~Lookout() { ask_deeds_no_more(*this); }
    Lookout(const Lookout&) = delete;
    bool is_ours(uint64_t address) const override;
    void look();
    uint32_t seen() const { return seen_; }  // `Slot.revocations`, when it was here
    // How long it may be until it looks again.
    int64_t rest_ns(int64_t usual) const;

private:
    bool is_mending() const { return to_mend_.descriptor < table_.extent_limit(); }
    void mend_for_a_while();
    bool mend_next();
    void close_what_was_stolen();
    bool is_anothers(OwnerWord word) const;
    bool is_of_this_program(uint32_t id) const;

    Table table_;
    uint32_t id_, seen_, mended_;
    struct Place {
        uint32_t descriptor;
        uint64_t offset;
    };
    Place to_mend_{kNoDescriptor, 0};
    std::atomic<bool> has_given_up_{false};
    int64_t looked_ns_ = 0, failing_since_ns_ = 0;
};

}  // namespace bequest
