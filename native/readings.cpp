#include "readings.hpp"

#include <algorithm>

namespace bequest {

namespace {

constexpr int kTriesMax = 1000;  // a table may be nonsense, and go on changing; nobody waits for that
constexpr uint32_t kProbes =
    64;  // of records, before one more is used: others' are most likely in use again soon

// Said before the first step of what somebody else must bring to its end if we do not: not by a destructor,
// for who is killed in between has not ended it.
void begin_parting(const Table& table, uint32_t self, uint32_t descriptor) {
    table.slot(self).parting.store(descriptor + 1);
    BEQUEST_STEP("parting begun");
}

void end_parting(const Table& table, uint32_t self) { table.slot(self).parting.store(0); }

}  // namespace

bool is_read(const Table& table, uint32_t descriptor) {
    const uint32_t limit = table.reading_limit();
    for (uint32_t i = 0; i < limit; i++)
        if (table.reading_word(i).is_of(descriptor)) return true;
    return false;
}

std::vector<uint32_t> readers_of(const Table& table, uint32_t descriptor) {
    std::vector<uint32_t> readers;
    for (uint32_t i = 0; i < table.reading_limit(); i++) {
        const ReadingWord word = table.reading_word(i);
        if (word.is_of(descriptor) && std::find(readers.begin(), readers.end(), word.id()) == readers.end())
            readers.push_back(word.id());
    }
    return readers;
}

std::optional<Extent> take_if_forsaken(const Table& table, uint32_t self, uint32_t descriptor) {
    for (int tries = 0; tries < kTriesMax; tries++) {
        Extent e{descriptor, table.owner(descriptor)};
        if (!e.word.is(State::kFrozen, kMmuId) || is_read(table, descriptor)) return std::nullopt;
        if (!table.change(e, State::kThawing, self)) continue;
        const bool read_after_all = is_read(table, descriptor);
        if (!read_after_all && table.change(e, State::kOwned, self)) return e;
        if (read_after_all) table.change(e, State::kFrozen, kMmuId);
    }
    return std::nullopt;
}

bool Readings::claim_at(uint32_t record, uint32_t descriptor) {
    uint32_t nothing = 0;
    if (table_.reading(record).load() != 0) return false;
    return table_.reading(record).compare_exchange_strong(nothing, ReadingWord::make(self_, descriptor).bits);
}

// Within the limit before it is claimed: a record beyond it nobody would see.
std::optional<uint32_t> Readings::claim(uint32_t descriptor) {
    while (!spare_.empty()) {
        const uint32_t record = spare_.back();
        spare_.pop_back();
        if (claim_at(record, descriptor)) return record;
    }
    Shared<uint32_t>& used = table_.header().readings_used;
    for (uint32_t limit = table_.reading_limit();; limit = table_.reading_limit()) {
        const uint32_t probes = limit < kMaxReadings ? std::min(limit, kProbes) : limit;
        for (uint32_t i = 0; i < probes; i++) {
            const uint32_t record = next_ < limit ? next_ : 0;
            next_ = record + 1;
            if (claim_at(record, descriptor)) return record;
        }
        if (limit == kMaxReadings) return std::nullopt;
        used.compare_exchange_strong(limit, limit + 1);
        next_ = limit;
    }
}

Readings::Reading Readings::begin(const FrozenName& name) {
    const auto record = claim(name.descriptor);
    if (!record) return {Begun::kNoRecord, 0, {}, {}};
    BEQUEST_STEP("reading claimed");
    const Extent e{name.descriptor, table_.owner(name.descriptor)};
    // Frozen now, with our record there: nothing of this changes while that stands.
    const Descriptor& d = table_.extent(name.descriptor);
    if (e.word.state() == State::kFrozen && d.birth == name.birth && d.address == name.address)
        return {Begun::kDone, *record, e, {}};
    return {Begun::kGone, 0, {}, end(*record)};
}

std::optional<Extent> Readings::end(uint32_t record) {
    const uint32_t descriptor = table_.reading_word(record).descriptor();
    begin_parting(table_, self_, descriptor);
    table_.reading(record).store(0);
    spare_.push_back(record);
    BEQUEST_STEP("reading ended");
    const std::optional<Extent> forsaken = take_if_forsaken(table_, self_, descriptor);
    end_parting(table_, self_);
    return forsaken;
}

Thaw Readings::thaw(Extent& e) {
    if (is_read(table_, e.descriptor)) return Thaw::kIsRead;  // and nobody has been kept out meanwhile
    begin_parting(table_, self_, e.descriptor);
    const Thaw thawed = thaw_unless_read(e);
    end_parting(table_, self_);
    return thawed;
}

Thaw Readings::thaw_unless_read(Extent& e) {
    if (!table_.change(e, State::kThawing, self_)) return Thaw::kLost;
    const bool read_after_all = is_read(table_, e.descriptor);
    if (!table_.change(e, read_after_all ? State::kFrozen : State::kOwned, self_)) return Thaw::kLost;
    return read_after_all ? Thaw::kIsRead : Thaw::kDone;
}

bool Readings::forsake(Extent e, std::optional<Extent>& forsaken) {
    begin_parting(table_, self_, e.descriptor);
    const bool was_ours = table_.change(e, State::kFrozen, kMmuId);
    if (was_ours) forsaken = take_if_forsaken(table_, self_, e.descriptor);
    end_parting(table_, self_);
    return was_ours;
}

}  // namespace bequest
