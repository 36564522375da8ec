// Stealing, as far as the table goes: who takes what from whom, and what becomes of the steps that the victim
// was in the middle of. (That the victim cannot touch the pages any more is the agent's business, and goes
// first.)
//
// Theory of operation. A theft is a list of owner words, read from the table, and a compare-and-swap of each
// of them: an extent that was granted, freed, split or merged meanwhile has another word and is skipped. That
// swap is the commit point, for each extent by itself; before it the extent is marked with whom it is stolen
// from and which epoch the thief's word will have, so that the thief finds it (Attachment::adopt), also when
// nobody told it. The mark needs no wiping: with the next change of the word it is void.
//
// The dead were settled before. The living may be anywhere, stopped between any two steps or running, and go
// on as if nothing had happened until they notice. What they are in the middle of:
//
//   split      not committed: the left side is taken whole, and the victim's commit fails. Committed: the
//              right side is an embryo whose intent alone says that it counts, and the left word tells it. So
//              before a left word is taken the right side is completed, with the word that the victim would
//              give it.
//   merge      not committed: with the left side gone the right one is undone, again to the victim's word.
//              Committed: the right side is emptied before the left one is taken.
//   alloc      is an extent without meaning until the call returns; if it was taken, the call tries another.
//              What it has cut off a longer run, and is about to put back, has no bytes and is let alone.
//   free       takes its extent out of our hands or finds that we have it. If it was on its way to another's
//              return list, whoever frees it next finds that out too (Table::free).
//   grant      commits or not. A cell that it claimed holds up the receiver's inbox: when it is sealed, so
//              that the victim writes nothing to it any more, and its extent can no longer be committed, it
//              is skipped; when the grant is committed, it is published.
//   accept     is the victim's, until it has committed.
//   thaw       finds that the word has moved on, and what is frozen stays so, for the thief. Who reads it,
//              the victim perhaps among them, goes on reading.
#include <algorithm>
#include <climits>

#include "doorbell.hpp"
#include "recovery.hpp"

namespace bequest {

namespace {
constexpr int kTriesMax = 8;  // to see a victim that goes on splitting and merging
}

// What a process is in the middle of, as one picture; nothing if it moves on while we look. The right side's
// word was read while the intent was armed, so that an embryo with that word is the intent's.
std::optional<Steward::Change> Steward::change_of(uint32_t id) const {
    Intent& intent = table_.slot(id).intent;
    uint32_t armed = intent.armed.load();
    if (Intent::kind(armed) == IntentKind::kNone) return std::nullopt;
    Change change{Intent::kind(armed),
                  intent.left % kMaxExtents,
                  intent.right % kMaxExtents,
                  static_cast<State>(uint32_t{intent.settled_state}),
                  {intent.before},
                  {intent.after},
                  {},
                  {}};
    change.left_now = table_.owner(change.left);
    change.right_now = table_.owner(change.right);
    if (!intent.armed.compare_exchange_strong(armed, armed)) return std::nullopt;
    return change;
}

// Completes or undoes it. A living process may yet commit while the left word stands; once it has gone on
// from there without having become `after`, it never will, for nobody takes an `after` before this has looked
// at it.
void Steward::finish(const Change& change, uint32_t id, bool dead) {
    const bool committed = change.left_now == change.after;
    if (!dead && (change.left_now == change.before || change.state != State::kOwned)) return;
    if (!change.right_now.is(State::kEmbryo, id)) return;
    const bool sane = change.state == State::kFree || change.state == State::kOwned;  // a member wrote it
    const bool keep = sane && (change.kind == IntentKind::kSplit) == committed;
    table_.change(
        change.right, change.right_now,
        keep ? change.right_now.next(change.state, id) : change.right_now.next(State::kEmpty, kNobody));
}

void Steward::finish_for(uint32_t victim) {
    if (const auto change = change_of(victim)) finish(*change, victim, false);
}

// A merge under way makes one region of two already: who wants its right side gets the left one too, for
// while that stands the right one is not to be had.
std::vector<AddressRange> Steward::reach_of(const std::vector<AddressRange>& only, uint32_t victim) const {
    std::vector<AddressRange> reach = only;
    const auto change = change_of(victim);
    if (!change || change->kind != IntentKind::kMerge || !(change->left_now == change->before)) return reach;
    const uint64_t right = table_.extent(change->right).address;
    for (const AddressRange& range : only)
        if (range.touches(right, change->right_now.pages() * kPageBytes)) {
            reach.push_back({table_.extent(change->left).address, 1});
            break;
        }
    return reach;
}

std::vector<PlacedExtent> Steward::owned_by(uint32_t id, Which which) const {
    std::vector<PlacedExtent> found;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const Extent e{i, table_.owner(i)};
        if (!e.word.is_kept_by(id)) continue;
        if (which == Which::kStealable && (!table_.is_stealable(i) || table_.nbytes(e) == 0)) continue;
        found.push_back(table_.placed(e));
    }
    std::sort(found.begin(), found.end());
    return found;
}

// Pages that move from one extent to another while the table is read may be seen in neither. Who asks for all
// sees the other extent at least, and asks again until there is none; who asks for some pages might see
// nothing.
std::vector<PlacedExtent> Steward::stealable(uint32_t victim, const std::vector<AddressRange>* only) {
    help_along(victim);
    return only ? owned_within(victim, Which::kStealable, *only) : owned_by(victim, Which::kStealable);
}

std::vector<PlacedExtent> Steward::owned(uint32_t id, const std::vector<AddressRange>& only) {
    help_along(id);
    return owned_within(id, Which::kAll, only);
}

std::vector<PlacedExtent> Steward::owned_within(uint32_t id, Which which,
                                                const std::vector<AddressRange>& only) {
    const Shared<uint32_t>& armed = table_.slot(id).intent.armed;
    std::vector<PlacedExtent> found;
    uint32_t before = 0;
    for (int tries = 0; tries < kTriesMax && (tries == 0 || armed.load() != before); tries++) {
        before = armed.load();
        const std::vector<AddressRange> reach = reach_of(only, id);
        found = owned_by(id, which);
        std::erase_if(found, [&](const PlacedExtent& placed) {
            return std::none_of(reach.begin(), reach.end(), [&](const AddressRange& range) {
                return range.touches(placed.address, placed.extent.word.pages() * kPageBytes);
            });
        });
    }
    return found;
}

// The look at the victim's intent comes after the words were read: one of them that a change under way had
// made was made under an intent which is armed still, and completed here, or has been completed by the
// victim.
std::vector<PlacedExtent> Steward::steal(const std::vector<Extent>& wanted, uint32_t victim, uint32_t thief) {
    std::vector<PlacedExtent> stolen;
    Shared<uint32_t>& revocations = table_.slot(victim).revocations;
    revocations.fetch_add(1);  // who finds a word changed knows why
    finish_for(victim);
    for (Extent e : wanted) {
        if (e.descriptor >= kMaxExtents || !e.word.is_kept_by(victim)) continue;
        // A mark is written only over one that this theft makes void.
        if (!table_.is_stealable(e.descriptor) || !(table_.owner(e.descriptor) == e.word)) continue;
        const State state = e.word.is_frozen() ? State::kFrozen : State::kOwned;
        table_.mark_stolen(e.descriptor, e.word.next(state, thief), victim);
        if (table_.change(e, state, thief)) stolen.push_back(table_.placed(e));
    }
    if (!stolen.empty()) revocations.fetch_add(1);  // who has looked at its words meanwhile looks again
    wake(revocations, INT_MAX);
    help_along(victim);
    return stolen;
}

void Steward::have_mended(uint32_t id) {
    Slot& slot = table_.slot(id);
    slot.mends.fetch_add(1);
    slot.revocations.fetch_add(1);  // which wakes it, and has it look at its words as well
    wake(slot.revocations, INT_MAX);
}

// Whatever of its steps nobody but the victim would ever finish, and can be without it.
void Steward::help_along(uint32_t victim) {
    if (settled_[victim % kIdCount] == table_.slot(victim).life.load()) return;
    finish_for(victim);
    for (uint32_t id = 1; id < kIdCount; id++) {
        Slot& slot = table_.slot(id);
        if (slot.life.load() != 0 && Inbox(table_, id).unblock(victim) > 0) ring_doorbell(slot, INT_MAX);
    }
}

bool Steward::name_heir(uint32_t victim, uint32_t thief) {
    if (table_.life(victim) != Life::kDead || table_.life(thief) != Life::kLive) return false;
    Shared<uint32_t>& heir = table_.slot(victim).heir;
    const uint32_t former = heir.load(), named = table_.heir_word(thief);
    const bool lives =
        table_.life(former % kIdCount) == Life::kLive && table_.heir_word(former % kIdCount) == former;
    if (former != kNobody && former != named && lives) return false;
    heir.store(named);
    return true;
}

}  // namespace bequest
