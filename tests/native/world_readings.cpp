// Frozen regions in the world of the explorer: who reads what, and what must be true of it when all have
// ended.
#include <algorithm>
#include <cassert>

#include "checkers.hpp"
#include "world.hpp"

namespace bequest::tests {

FrozenName World::freeze(uint32_t id, size_t index) {
    const Act act(*this, id);
    Extent& e = held_[id].at(index);
    const FrozenName name{e.descriptor, table.extent(e.descriptor).birth, table.extent(e.descriptor).address};
    Extent frozen = e;
    if (processes.at(id)->freeze(frozen)) held_[id].at(index) = frozen;
    return name;
}

Thaw World::thaw(uint32_t id, size_t index) {
    const Act act(*this, id);
    Extent thawed = held_[id].at(index);
    const Thaw result = processes.at(id)->thaw(thawed);
    held_[id].at(index) = thawed;
    return result;
}

bool World::read(uint32_t id, const FrozenName& name) {
    const Act act(*this, id);
    const auto held = processes.at(id)->read(name);
    if (held) reads_[id].emplace_back(name, *held);
    return held.has_value();
}

// What it reads must be there, and the same, until the moment in which it lets go.
void World::let_go(uint32_t id) {
    const Act act(*this, id);
    if (reads_[id].empty()) return;
    const HeldReading reading = reads_[id].back().second;
    reads_[id].pop_back();
    processes.at(id)->let_go(reading);
}

bool World::reads(uint32_t id, const Page& page) const {
    if (page.state != State::kFrozen && page.state != State::kThawing) return false;
    for (uint32_t i = 0; i < table.reading_limit(); i++)
        if (table.reading_word(i).is_of(page.descriptor) && table.reading_word(i).id() == id) return true;
    return false;
}

// Who was robbed of what is frozen closes it, unless it reads it besides.
void World::lose(uint32_t id, const Extent& frozen) {
    processes.at(id)->space().lose(table.extent(frozen.descriptor).address, frozen.word.pages() * kPageBytes);
}

std::string World::check_readings() {
    std::map<uint32_t, size_t> records;
    std::map<uint32_t, size_t> readers;
    for (uint32_t i = 0; i < kMaxReadings; i++) {
        const ReadingWord record = table.reading_word(i);
        if (record.bits == 0) continue;
        if (i >= table.reading_limit()) return "a reading is recorded where nobody looks";
        if (is_dead(record.id())) return "the dead are said to read";
        records[record.id()]++, readers[record.descriptor()]++;
    }
    for (const auto& [id, reads] : reads_) {
        if (is_dead(id)) continue;
        if (records[id] != reads.size())
            return std::to_string(id) + " reads " + std::to_string(reads.size()) + " regions and has " +
                   std::to_string(records[id]) + " records";
        for (const auto& [name, held] : reads) {
            const Descriptor& d = table.extent(name.descriptor);
            if (table.owner(name.descriptor).state() != State::kFrozen || d.birth != name.birth)
                return std::to_string(id) + " reads what is not frozen any more: " + at(name.address);
            const uint64_t end = name.address + held.extent.word.pages() * kPageBytes;
            for (uint64_t page = name.address; page < end; page += kPageBytes) {
                AddressSpace& space = processes.at(id)->space();
                if (!space.is_open(page, kPageBytes) || !space.is_sealed(page, page + kPageBytes))
                    return std::to_string(id) + " cannot read, or can write to, " + at(page);
            }
        }
    }
    for (const auto& [id, held] : held_)
        for (const Extent& e : held) {
            const uint64_t start = table.extent(e.descriptor).address;
            if (!is_dead(id) && e.word.is_frozen() && !processes.at(id)->space().is_sealed(start, start + 1))
                return std::to_string(id) + " can write to what it keeps frozen: " + at(start);
        }
    for (uint32_t i = 0; i < table.extent_limit(); i++)
        if (table.owner(i).is(State::kFrozen, kMmuId) && readers[i] == 0)
            return "extent " + std::to_string(i) + " is nobody's, and nobody will free it";
    for (uint32_t id = 1; id < kIdCount; id++)
        if (table.slot(id).parting.load() != 0) return std::to_string(id) + " is parting for ever";
    return "";
}

}  // namespace bequest::tests
