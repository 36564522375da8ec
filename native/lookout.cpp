#include "lookout.hpp"

#include <algorithm>

#include "doorbell.hpp"

namespace bequest {

namespace {

constexpr int kTriesMax = 8;  // for an extent that goes from hand to hand
constexpr int64_t kMendingSlice_ns = 2'000'000;
constexpr uint64_t kMendingStepBytes = 8 * kHugePageBytes;
constexpr int64_t kMendingRest_ns = 2'000'000;
constexpr int64_t kUntilMappedAgain_ns = 100'000'000;  // it may be fenced once more just now, and lifted soon
constexpr int64_t kMendingPatience_ns = 2'000'000'000;

struct Sight {
    Table table;
    Extent extent;
    bool moved = false;
};

bool still_stands(void* what) {
    Sight& sight = *static_cast<Sight*>(what);
    sight.moved = !(sight.table.owner(sight.extent.descriptor) == sight.extent.word);
    return !sight.moved;
}

}  // namespace

Lookout::Lookout(Table table, uint32_t id)
    : table_(table), id_(id), seen_(table.slot(id).revocations.load()), mended_(table.slot(id).mends.load()) {
    ask_deeds(*this);
}

// Pages that move from one extent to another while the table is read may be seen in neither: then it is read
// again. What another attachment of this program has stolen is ours only once its thief has adopted it, which
// a thread that waits for it might prevent.
bool Lookout::is_ours(uint64_t address) const {
    if (has_given_up_) return false;
    for (int tries = 0; tries < kTriesMax; tries++) {
        for (uint32_t i = 0; i < table_.extent_limit(); i++) {
            const Extent e{i, table_.owner(i)};
            if (e.word.state() == State::kEmpty) continue;
            if (address - table_.placed(e).address >= e.word.pages() * kPageBytes) continue;
            if (!(table_.owner(i) == e.word)) break;
            const bool bears_id = e.word.is_kept_by(id_) || e.word.is(State::kEmbryo, id_);
            return bears_id && !table_.awaits_adoption(e);
        }
    }
    return false;
}

void Lookout::look() {
    const uint32_t revocations = table_.slot(id_).revocations.load(), mends = table_.slot(id_).mends.load();
    if (mends != mended_) {
        to_mend_ = {0, 0};
        failing_since_ns_ = 0;
        has_given_up_ = false;
    }
    mended_ = mends;
    const bool has_opened = is_mending();
    if (has_opened) mend_for_a_while();
    if (revocations != seen_ || has_opened) close_what_was_stolen();
    seen_ = revocations;
    const int64_t now = monotonic_ns();
    if (now - looked_ns_ < kLookInterval_ns) return;
    looked_ns_ = now;
    stand_first_in_line();
    tell_hardware_errors();
}

void Lookout::mend_for_a_while() {
    const int64_t start = monotonic_ns();
    while (is_mending() && monotonic_ns() - start < kMendingSlice_ns)
        if (!mend_next()) return;
}

int64_t Lookout::rest_ns(int64_t usual) const {
    if (!is_mending()) return usual;
    return failing_since_ns_ == 0 ? 0 : std::min(usual, kMendingRest_ns);
}

// A step of an extent; false if it is to be tried again. What has failed stays closed: a guard by ptrace may
// lie on it (runtime/fencing.py).
bool Lookout::mend_next() {
    const uint32_t descriptor = to_mend_.descriptor;
    const Opening opening(table_.slot(id_));
    Sight sight{table_, {descriptor, table_.owner(descriptor)}};
    const Extent& e = sight.extent;
    const uint64_t bytes = e.word.pages() * kPageBytes, offset = to_mend_.offset;
    const bool is_whole = offset >= bytes;
    if (is_whole || !e.word.is_kept_by(id_) || table_.awaits_adoption(e) ||
        table_.slab_record(table_.extent(descriptor).slab).has_failed.load()) {
        to_mend_ = {descriptor + 1, 0};
        return true;
    }
    const uint64_t step = std::min(kMendingStepBytes, bytes - offset);
    const PlacedExtent placed = table_.placed(e);  // whose it is, `still_stands` looks again
    const int64_t now = monotonic_ns(), failing_ns = failing_since_ns_ == 0 ? 0 : now - failing_since_ns_;
    const Mending mending = failing_ns < kUntilMappedAgain_ns ? Mending::kOpen : Mending::kMapAgain;
    if (!open_ours(placed.address + offset, step, still_stands, &sight, mending) && !sight.moved) {
        if (failing_since_ns_ == 0) failing_since_ns_ = now;
        if (failing_ns < kMendingPatience_ns) return false;
        has_given_up_ = true;
    }
    failing_since_ns_ = 0;
    to_mend_ = sight.moved ? Place{0, 0} : Place{descriptor, offset + step};  // it may be in parts by now
    return true;
}

bool Lookout::is_of_this_program(uint32_t id) const {
    return id == id_ || table_.slot(id).os_pid == table_.slot(id_).os_pid;
}

// Pages are opened before the word is changed when something is accepted: from our own inbox, a mailbox, or
// as an heir from that of somebody dead. And what the Rack MMU has is away: another group may have the
// address.
bool Lookout::is_anothers(OwnerWord word) const {
    const uint32_t id = word.id();
    if (id == kNobody || id > kMaxProcessId || is_of_this_program(id)) return false;
    if (word.is_kept_by(id)) return true;
    return (word.state() == State::kInFlight || word.state() == State::kFree) &&
           table_.life(id) == Life::kLive;
}

void Lookout::close_what_was_stolen() {
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        for (int tries = 0; tries < kTriesMax; tries++) {
            Sight sight{table_, {i, table_.owner(i)}};
            if (!is_anothers(sight.extent.word)) break;
            const PlacedExtent placed =
                table_.placed(sight.extent);  // whose it is, `still_stands` looks again
            close_stale(placed.address, sight.extent.word.pages() * kPageBytes, still_stands, &sight);
            if (!sight.moved) break;
        }
    }
}

}  // namespace bequest
