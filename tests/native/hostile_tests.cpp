// The Rack MMU serves many groups, and every member of one may write anything into its group's table.
// Whatever stands there, the MMU's acts end, stay inside the table, and do not fail an assertion.
#include <random>

#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr int kTables = 3'000;

uint64_t any_number(std::mt19937_64& random) {
    const uint64_t edges[] = {0,           1,          2,          7,         kInboxCells, kMaxExtents - 1,
                              kMaxExtents, UINT32_MAX, 1ull << 51, UINT64_MAX};
    switch (random() % 3) {
    case 0:
        return edges[random() % std::size(edges)];
    case 1:
        return random() % 64;
    default:
        return random();
    }
}

void scribble(World& w, std::mt19937_64& random) {
    const auto number = [&] { return any_number(random); };
    const auto small = [&] { return static_cast<uint32_t>(any_number(random)); };
    const auto id = static_cast<uint32_t>(1 + random() % 3);
    const auto extent = static_cast<uint32_t>(random() % (2 * kExtentsPerBlock));
    const uint32_t state = random() % 8, owner = random() % 4 == 0 ? kMmuId : id;
    switch (random() % 14) {
    case 0:
        w.table.slot(id).head.store(number());
        break;
    case 1:
        w.table.slot(id).tail.store(number());
        break;
    case 2:
        w.table.cell(id, random())
            .word.store(CellWord::make(static_cast<CellState>(state), id, number() % 4).bits);
        break;
    case 3:
        w.table.cell(id, random()).word.store(number());
        break;
    case 4:
        w.table.cell(id, random()).descriptor = small();
        break;
    case 5:
        w.table.extent(extent).owner.store(
            OwnerWord::make(static_cast<State>(state), owner, 1 + number() % 9, number()).bits);
        break;
    case 6:
        w.table.extent(extent).address = number();
        break;
    case 12:  // next to where an extent may be
        w.table.extent(extent).address =
            w.table.extent(extent).address + number() % 3 * kPageBytes + 1 - number() % 3;
        break;
    case 13:
        w.table.slot(id).life.store(number());
        break;
    case 7:
        w.table.extent(extent).slab = small() % 4;
        break;
    case 8:
        w.table.slot(id).intent.armed.store(small() % 4);
        break;
    case 9:
        w.table.slot(id).intent.right = static_cast<uint32_t>(extent);
        break;
    case 10:
        w.table.slot(id).intent.settled_state = small();
        break;
    default:
        w.table.slot(id).intent.left = small();
    }
    if (random() % 32 == 0) w.table.header().slabs_used.store(small());
    if (random() % 32 == 0) w.table.header().blocks_used.store(small());
    if (random() % 8 == 0) w.table.slot(random() % 4 == 0 ? kMmuId : id).parting.store(small());
    if (random() % 8 == 0)
        w.table.reading(small()).store(random() % 4 == 0 ? small() : ReadingWord::make(owner, extent).bits);
    if (random() % 32 == 0) w.table.header().readings_used.store(small());
    if (random() % 8 == 0) w.table.extent(extent).linked.store(small());
}

void do_everything(World& w) {
    Steward& mmu = *w.steward;
    mmu.audit();
    mmu.idle_slabs();
    w.table.mark_dead(1);
    mmu.settle(1);
    mmu.release(1);
    mmu.holdings(1);
    for (uint32_t slab = 0; slab < 4; slab++) mmu.take_slab(slab);
    mmu.add_slab({5, kWindowBase + (2ull << kProcessSpaceBits), 3, 0, false, 2});
    mmu.add_slab_granted({6, kWindowBase + (3ull << kProcessSpaceBits), 3, 0, false, 3}, 9,
                         {2, 1, kMmuId, "tag"});
    mmu.deliver_into(kWindowBase + (1ull << kProcessSpaceBits) + kHugePageBytes, 2, 2, {2, 1, kMmuId, "tag"});
    for (uint32_t slab = 0; slab < 4; slab++) mmu.read_in(slab);
    mmu.free_away(kWindowBase + (1ull << kProcessSpaceBits) + kHugePageBytes, 4);
    mmu.settle(2);
    mmu.recover();
    mmu.audit();
    w.table.vacate(1);
    w.table.admit(3, 2, 7, "third");
}

std::string survives_nonsense() {
    World w;
    for (int i = 0; i < kTables; i++) {
        std::mt19937_64 random(static_cast<uint64_t>(i));
        w.clear();
        for (uint32_t id = 1; id <= 3; id++) {
            w.admit(id);
            w.add_slab(id, id, 8);
        }
        w.split(1, w.alloc(1, 4), 2);
        w.grant(1, 2, {w.held(1)});
        w.steward->withdraw(w.held(1));
        for (uint64_t n = random() % 24; n > 0; n--) scribble(w, random);
        do_everything(w);
        w.explorer().note_dirty(&w.table.slot(0), kIdCount * sizeof(Slot));
        w.explorer().note_dirty(&w.table.reading(0), kMaxReadings * sizeof(ReadingWord));
    }
    return "";
}

}  // namespace

std::vector<Test> hostile_tests() {
    return {{"hostile: the Rack MMU survives 3000 tables of nonsense", survives_nonsense}};
}

}  // namespace bequest::tests
