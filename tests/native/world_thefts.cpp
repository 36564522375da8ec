// Thefts as the Rack MMU goes about them, and what no victim may do once they are over.
#include <string>
#include <utility>
#include <vector>

#include "checkers.hpp"
#include "fake_address_space.hpp"
#include "world.hpp"

namespace bequest::tests {

// What the victim's agent does from outside.
void World::fence(uint32_t victim, const std::vector<PlacedExtent>& extents) {
    page_table(victim).fetch_add(1);
    for (const auto& [address, extent] : extents) {
        closes_from_outside = true;
        processes.at(victim)->space().close(address, extent.word.pages() * kPageBytes);
    }
}

void World::rob(uint32_t victim, uint32_t thief, int passes, const std::vector<AddressRange>* only) {
    being_robbed_.insert(victim);
    thefts_.insert({thief, victim});
    if (only) robbed_in_part_.insert(victim);
    for (; passes > 0; passes--) {
        const std::vector<PlacedExtent> listed = steward->stealable(victim, only);
        if (listed.empty()) break;
        if (victim != thief) fence(victim, listed);
        std::vector<Extent> wanted;
        for (const PlacedExtent& placed : listed) wanted.push_back(placed.extent);
        const std::vector<PlacedExtent> stolen = steward->steal(wanted, victim, thief);
        if (victim == thief) continue;
        const bool is_opening = steward->is_opening(victim);
        if (is_opening && !is_hasty) {  // the Rack MMU waits, and so does the thief
            unfinished_.emplace_back(victim, stolen);
            return;
        }
        fence(victim, stolen);
        if (is_opening) return;  // the victim closes by itself what it opens now
    }
    being_robbed_.erase(victim);
}

void World::finish_thefts() {
    for (const auto& [victim, stolen] : std::exchange(unfinished_, {})) {
        if (!is_dead(victim)) fence(victim, stolen);
        being_robbed_.erase(victim);
    }
}

// However late: when a theft is over its victim opens nothing of it.
void World::look_at_opened() {
    for (const auto& [id, process] : processes) {
        const AddressSpace* space = &process->space();
        if (space != last_opened || is_dead(id) || being_robbed_.count(id) > 0) continue;
        for (uint32_t i = 0; i < table.extent_limit(); i++) {
            const OwnerWord word = table.owner(i);
            if (word.state() != State::kOwned || may_open(id, {word.state(), word.id(), i})) continue;
            for (uint64_t page = 0; page < word.pages(); page++)
                if (space->is_open(table.extent(i).address + page * kPageBytes, kPageBytes))
                    explorer_->fail(std::to_string(id) + " has opened what was stolen from it, " +
                                    at(table.extent(i).address + page * kPageBytes));
        }
    }
}

void World::rob_the_dead(uint32_t victim, uint32_t thief) {
    steward->settle(victim);
    std::vector<Extent> wanted;
    for (const PlacedExtent& placed : steward->stealable(victim)) wanted.push_back(placed.extent);
    thefts_.insert({thief, victim});
    steward->steal(wanted, victim, thief);
    steward->name_heir(victim, thief);
}

Operation World::theft(uint32_t victim, uint32_t thief, int after, int passes) {
    const std::string name = "steals from " + std::to_string(victim) + " for " + std::to_string(thief);
    return mmu(name, [this, victim, thief, passes] { rob(victim, thief, passes); }, after);
}

}  // namespace bequest::tests
