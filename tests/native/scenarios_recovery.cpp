// The Rack MMU is killed in the middle of what it does to a table, and the next one begins by recovering.
//
// What a killed one had made its own in a slab that is there ("away") is explained by the books, or by
// nothing; here it is by nothing, so the next one frees it, as protocol/restorer.py does.
#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint32_t kSlab = 1, kNewSlab = 2;

void settle_down(World& w) {
    for (uint32_t id = 1; id <= 3; id++) w.admit(id);
    w.add_slab(kSlab, 1, 6);
    w.split_and_merge_once(1);
}

bool is_all_away(World& w, uint32_t slab) {
    for (const Extent& e : w.steward->extents_of(slab))
        if (e.word.id() != kMmuId) return false;
    return true;
}

Operation next(World& w, const std::function<void()>& goes_on = [] {}) {
    return {"the next MMU recovers",
            [&w, goes_on] {
                w.steward = std::make_unique<Steward>(w.table);
                w.steward->recover();
                goes_on();
                for (uint32_t slab : {kSlab, kNewSlab}) {
                    if (!w.table.has_slab(slab)) continue;
                    const SlabRecord& record = w.table.slab_record(slab);
                    if (slab == kNewSlab && is_all_away(w, slab))
                        w.steward->take_slab(slab);  // granted to nobody yet
                    else
                        w.steward->free_away(record.address, record.pages);
                }
            },
            0};
}

std::vector<Operation> taking(World& w) {
    settle_down(w);
    return {{"the MMU takes the slab", [&w] { w.steward->take_slab(kSlab); }},
            next(w),
            {"1 allocates", [&w] { w.try_alloc(1, 6); }}};
}

std::vector<Operation> taking_cut(World& w) {
    settle_down(w);
    const Extent a = w.alloc(1, 2), b = w.alloc(1, 4);
    w.free(1, a);
    w.free(1, b);
    return {{"the MMU takes the slab", [&w] { w.steward->take_slab(kSlab); }},
            next(w),
            {"1 allocates", [&w] { w.try_alloc(1, 6); }}};
}

std::vector<Operation> adding(World& w) {
    settle_down(w);
    return {{"the MMU adds a slab", [&w] { w.add_slab(kNewSlab, 1, 3); }},
            next(w),
            {"1 allocates", [&w] { w.try_alloc(1, 7), w.try_alloc(1, 3); }}};
}

SlabSpec foreign() { return {kNewSlab, kWindowBase + 9 * kProcessSpaceBytes, 3, 0, false, 9}; }

std::vector<Operation> granting(World& w) {
    settle_down(w);
    return {{"the MMU grants a slab to 2", [&w] { w.deliver(foreign(), 3 * kPageBytes, 2); }},
            next(w),
            {"2 accepts", [&w] { w.accept(2, 2); }}};
}

std::vector<Operation> filling_a_hole(World& w) {
    settle_down(w);
    const Extent region = w.alloc(1, 6);
    const uint64_t address = w.table.extent(region.descriptor).address;
    w.withdraw(1, region);
    return {{"the MMU delivers into the hole", [&w, address] { w.deliver_into(address + kPageBytes, 3, 2); }},
            next(w),
            {"2 accepts", [&w] { w.accept(2, 2); }}};
}

std::vector<Operation> burying(World& w) {
    settle_down(w);
    w.grant(1, 2, {w.alloc(1, 2)});
    w.accept(2, 2);
    w.grant(1, 2, {w.alloc(1, 1)});
    return {{"the MMU buries 2", [&w] { w.bury(2); }}, next(w, [&w] { w.bury(2); }), {"1 allocates", [&w] {
                                                                                          w.try_alloc(1, 3);
                                                                                      }}};
}

}  // namespace

std::vector<Scenario> recovery_scenarios() {
    return {
        {"recovery: killed while it takes a slab", taking, {0}},
        {"recovery: killed while it takes a slab of two runs", taking_cut, {0}},
        {"recovery: killed while it adds a slab", adding, {0}},
        {"recovery: killed while it grants a slab", granting, {0}},
        {"recovery: killed while it fills a hole", filling_a_hole, {0}},
        {"recovery: killed while it buries", burying, {0}},
    };
}

}  // namespace bequest::tests
