// Frozen regions: read by some while their keeper frees, thaws, is robbed or dies, and while they die
// themselves.
//
// Nothing is freed under a reader, nothing that nobody keeps outlives the last, and who reads reads what was
// frozen: World::check_readings, after every schedule.
#include "scenario.hpp"

namespace bequest::tests {

namespace {

// 1 keeps a frozen page, from home or from 4; `readers` of 2 and 3 read it already.
FrozenName begin(World& w, uint32_t readers = 0, uint32_t home = 1) {
    for (uint32_t id = 1; id <= 4; id++) w.admit(id);
    w.add_slab(1, home, 2);
    w.split_and_merge_once(home);
    w.alloc(home, 1);
    if (home != 1) {
        w.grant(home, 1, {w.held(home)});
        w.accept(1, 1);
    }
    const FrozenName name = w.freeze(1);
    for (uint32_t id = 2; id < 2 + readers; id++) w.read(id, name);
    return name;
}

Operation free_op(World& w) {
    return {"1 frees", [&w] {
                if (w.holds(1) > 0) w.free(1, w.held(1));
            }};
}
Operation read_op(World& w, uint32_t id, const FrozenName& name) {
    return {std::to_string(id) + " reads", [&w, id, name] { w.read(id, name); }};
}
Operation let_go_op(World& w, uint32_t id) {
    return {std::to_string(id) + " lets go", [&w, id] { w.let_go(id); }};
}
Operation read_and_let_go(World& w, uint32_t id, const FrozenName& name) {
    return {std::to_string(id) + " reads and lets go", [&w, id, name] {
                if (w.read(id, name)) w.let_go(id);
            }};
}
Operation adoption(World& w, uint32_t thief, uint32_t victim, int after) {
    return {std::to_string(thief) + " adopts", [&w, thief, victim] { w.adopt(thief, victim); }, after};
}
Operation theft_from_the_dead(World& w, uint32_t victim, uint32_t thief, int after) {
    return w.mmu(
        "steals from the dead " + std::to_string(victim),
        [&w, victim, thief] {
            w.mark_dead(victim);
            w.rob_the_dead(victim, thief);
            w.steward->release(victim);
        },
        after);
}

std::vector<Operation> reading_beside_a_free(World& w) {
    const FrozenName name = begin(w);
    return {free_op(w), read_op(w, 2, name)};
}

std::vector<Operation> reading_shortly_beside_a_free(World& w) {
    const FrozenName name = begin(w);
    return {free_op(w), read_and_let_go(w, 2, name), {"4 allocates", [&w] { w.try_alloc(4, 1); }}};
}

std::vector<Operation> two_reading_beside_a_free(World& w) {
    const FrozenName name = begin(w, 1);
    return {free_op(w), let_go_op(w, 2), read_op(w, 3, name)};
}

std::vector<Operation> letting_go_beside_a_free(World& w) {
    begin(w, 1);
    return {free_op(w), let_go_op(w, 2)};
}

std::vector<Operation> all_letting_go(World& w) {
    begin(w, 2);
    return {free_op(w), let_go_op(w, 2), let_go_op(w, 3)};
}

std::vector<Operation> all_letting_go_from_afar(World& w) {
    begin(w, 2, 4);
    return {free_op(w), let_go_op(w, 2), let_go_op(w, 3)};
}

// The home takes it at once, and freezes something else under the same descriptor.
std::vector<Operation> freed_and_used_again(World& w) {
    const FrozenName name = begin(w, 1, 4);
    w.free(1, w.held(1));
    return {let_go_op(w, 2), read_op(w, 3, name), {"4 allocates and freezes", [&w] {
                                                       if (w.try_alloc(4, 1)) w.freeze(4);
                                                   }}};
}

std::vector<Operation> reading_beside_a_thaw(World& w) {
    const FrozenName name = begin(w);
    return {{"1 thaws", [&w] { w.thaw(1); }}, read_op(w, 2, name)};
}

std::vector<Operation> letting_go_beside_a_thaw(World& w) {
    const FrozenName name = begin(w, 1);
    return {{"1 thaws", [&w] { w.thaw(1); }}, let_go_op(w, 2), read_and_let_go(w, 3, name)};
}

// 2 reads it all the while. So neither thawing it nor freeing it comes to anything, and nobody notices.
std::vector<Operation> coming_beside(World& w, const char* what, std::function<void()> act) {
    const FrozenName name = begin(w, 1);
    w.also = [&w]() -> std::string {
        return w.readings(3) == 1 ? "" : "what is being read could not be read by another";
    };
    return {{what, std::move(act)}, read_op(w, 3, name)};
}

std::vector<Operation> coming_beside_a_vain_thaw(World& w) {
    return coming_beside(w, "1 thaws in vain", [&w] { w.thaw(1); });
}

std::vector<Operation> coming_beside_a_free(World& w) {
    return coming_beside(w, "1 frees", [&w] { w.free(1, w.held(1)); });
}

std::vector<Operation> own_reading(World& w) {
    const FrozenName name = begin(w);
    w.read(1, name);
    return {{"1 frees and lets go", [&w] { w.free(1, w.held(1)), w.let_go(1); }},
            read_and_let_go(w, 2, name)};
}

std::vector<Operation> theft(World& w) {
    const FrozenName name = begin(w, 1);
    return {w.theft(1, 3), read_and_let_go(w, 4, name), adoption(w, 3, 1, 0)};
}

// From one who reads it besides: it goes on reading.
std::vector<Operation> theft_from_a_reader(World& w) {
    const FrozenName name = begin(w);
    w.read(1, name);
    return {w.theft(1, 3),
            {"3 adopts, and thaws",
             [&w] {
                 w.adopt(3, 1);
                 if (w.holds(3) > 0) w.thaw(3);
             },
             0},
            let_go_op(w, 1)};
}

std::vector<Operation> theft_beside_a_freeze(World& w) {
    for (uint32_t id = 1; id <= 3; id++) w.admit(id);
    w.add_slab(1, 1, 1);
    w.alloc(1, 1);
    return {{"1 freezes", [&w] { w.freeze(1); }}, w.theft(1, 3), adoption(w, 3, 1, 1)};
}

std::vector<Operation> theft_beside_a_thaw(World& w) {
    begin(w);
    return {{"1 thaws", [&w] { w.thaw(1); }}, w.theft(1, 3), adoption(w, 3, 1, 1)};
}

std::vector<Operation> theft_beside_a_free(World& w) {
    begin(w, 1);
    return {free_op(w), w.theft(1, 3), let_go_op(w, 2), adoption(w, 3, 1, 1)};
}

std::vector<Operation> death_of_a_freeing_keeper(World& w) {
    begin(w, 1);
    return {free_op(w), let_go_op(w, 2), w.burial(1, 0)};
}

std::vector<Operation> death_of_a_freeing_keeper_beside_a_read(World& w) {
    const FrozenName name = begin(w);
    return {free_op(w), read_op(w, 2, name), w.burial(1, 0)};
}

std::vector<Operation> death_of_a_thawing_keeper(World& w) {
    const FrozenName name = begin(w);
    return {{"1 thaws", [&w] { w.thaw(1); }},
            read_op(w, 2, name),
            theft_from_the_dead(w, 1, 3, 0),
            adoption(w, 3, 1, 2)};
}

std::vector<Operation> burial_of_a_thawing_keeper(World& w) {
    const FrozenName name = begin(w);
    return {{"1 thaws", [&w] { w.thaw(1); }}, read_op(w, 2, name), w.burial(1, 0)};
}

std::vector<Operation> death_of_a_freezer(World& w) {
    for (uint32_t id = 1; id <= 3; id++) w.admit(id);
    w.add_slab(1, 1, 1);
    w.alloc(1, 1);
    return {{"1 freezes", [&w] { w.freeze(1); }}, theft_from_the_dead(w, 1, 3, 0), adoption(w, 3, 1, 1)};
}

std::vector<Operation> death_of_a_reader(World& w) {
    const FrozenName name = begin(w);
    return {read_and_let_go(w, 2, name), free_op(w), w.burial(2, 0)};
}

std::vector<Operation> death_of_a_reader_beside_another(World& w) {
    begin(w, 2);
    w.free(1, w.held(1));
    return {let_go_op(w, 2), let_go_op(w, 3), w.burial(2, 0)};
}

// What nobody keeps comes to the heir of a reader, and the other reader goes on.
std::vector<Operation> inheriting_from_a_reader(World& w) {
    begin(w, 2);
    w.free(1, w.held(1));
    return {let_go_op(w, 2), theft_from_the_dead(w, 2, 4, 0), adoption(w, 4, 2, 1), let_go_op(w, 3)};
}

std::vector<Operation> inheriting_from_one_who_only_read(World& w) {
    begin(w, 1);
    w.free(1, w.held(1));
    w.also = [&w]() -> std::string {
        return w.holds(4) == 1 ? "" : "the heir of a reader has not got what nobody else has";
    };
    return {theft_from_the_dead(w, 2, 4, -1), adoption(w, 4, 2, 0)};
}

std::vector<Operation> releasing_beside_a_reader(World& w) {
    begin(w, 2);
    return {w.burial(1), let_go_op(w, 2), let_go_op(w, 3)};
}

std::vector<Operation> releasing_beside_who_comes(World& w) {
    const FrozenName name = begin(w);
    return {w.burial(1), read_and_let_go(w, 2, name)};
}

std::vector<Operation> thawing_beside_a_dead_reader(World& w) {
    begin(w, 1);
    return {let_go_op(w, 2), {"1 thaws", [&w] { w.thaw(1); }}, w.burial(2, 0)};
}

std::string left_with_the_mmu(World& w) {
    for (uint32_t i = 0; i < w.table.extent_limit(); i++)
        if (w.table.owner(i).is(State::kOwned, kMmuId)) return "what was about to be freed stays the MMU's";
    return "";
}

// The Rack MMU itself is killed, and its successor goes on.
std::vector<Operation> killed_mmu(World& w) {
    begin(w, 1);
    w.also = [&w] { return left_with_the_mmu(w); };
    return {{"the MMU buries 1", [&w] { w.bury(1); }},
            let_go_op(w, 2),
            {"another MMU recovers",
             [&w] {
                 w.steward->recover();
                 w.bury(1);
             },
             0}};
}

// It has cleared the record of a dead reader, and not looked yet.
std::vector<Operation> killed_mmu_beside_a_free(World& w) {
    begin(w, 1);
    w.mark_dead(2);
    return {{"the MMU settles 2", [&w] { w.steward->settle(2); }},
            free_op(w),
            {"another MMU recovers",
             [&w] {
                 w.steward->recover();
                 w.bury(2);
             },
             0}};
}

// Of a reader that died when it had cleared its record, and not looked yet.
std::vector<Operation> killed_mmu_looking_for_another(World& w) {
    const FrozenName name = begin(w, 1);
    w.free(1, w.held(1));
    for (uint32_t i = 0; i < w.table.reading_limit(); i++) w.table.reading(i).store(0);
    w.table.slot(2).parting.store(name.descriptor + 1);
    w.mark_dead(2);
    w.also = [&w] { return left_with_the_mmu(w); };
    return {{"the MMU settles 2", [&w] { w.steward->settle(2); }},
            {"another MMU recovers",
             [&w] {
                 w.steward->recover();
                 w.bury(2);
             },
             0}};
}

std::vector<Operation> splitting_what_is_not_frozen(World& w) {
    begin(w, 1);
    return {{"1 allocates and splits",
             [&w] {
                 if (w.try_alloc(1, 1)) w.free(1, w.held(1, 1));
             }},
            let_go_op(w, 2)};
}

}  // namespace

std::vector<Scenario> frozen_scenarios() {
    return {
        {"frozen: read while it is freed", reading_beside_a_free},
        {"frozen: read shortly while it is freed", reading_shortly_beside_a_free},
        {"frozen: let go of, and read, while it is freed", two_reading_beside_a_free},
        {"frozen: let go of while it is freed", letting_go_beside_a_free},
        {"frozen: let go of by all at once", all_letting_go},
        {"frozen: let go of by all at once, far from home", all_letting_go_from_afar},
        {"frozen: freed, and something else frozen in its place", freed_and_used_again},
        {"frozen: read while it is thawed", reading_beside_a_thaw},
        {"frozen: let go of, and read, while it is thawed", letting_go_beside_a_thaw},
        {"frozen: read by one more while it is thawed in vain", coming_beside_a_vain_thaw},
        {"frozen: read by one more while it is freed", coming_beside_a_free},
        {"frozen: read by its keeper, who frees it", own_reading},
        {"frozen: stolen from a living keeper", theft},
        {"frozen: stolen from a keeper who reads it, and thawed", theft_from_a_reader},
        {"frozen: stolen while it is being frozen", theft_beside_a_freeze},
        {"frozen: stolen while it is thawed", theft_beside_a_thaw},
        {"frozen: stolen while it is freed and let go of", theft_beside_a_free},
        {"frozen: its keeper is killed freeing it", death_of_a_freeing_keeper, {0, 1}},
        {"frozen: its keeper is killed freeing it, while it is read",
         death_of_a_freeing_keeper_beside_a_read,
         {0}},
        {"frozen: its keeper is killed thawing it", death_of_a_thawing_keeper, {0}},
        {"frozen: its keeper is killed thawing it, and buried", burial_of_a_thawing_keeper, {0}},
        {"frozen: its owner is killed freezing it", death_of_a_freezer, {0}},
        {"frozen: a reader is killed while it is freed", death_of_a_reader, {0}},
        {"frozen: a reader is killed letting go beside another", death_of_a_reader_beside_another, {0}},
        {"frozen: a killed reader's heir, beside another reader", inheriting_from_a_reader, {0}},
        {"frozen: the heir of the last reader", inheriting_from_one_who_only_read},
        {"frozen: the dead keeper's is released, while it is read", releasing_beside_a_reader},
        {"frozen: the dead keeper's is released, while one comes to read it", releasing_beside_who_comes},
        {"frozen: a reader is killed while it is thawed", thawing_beside_a_dead_reader, {0}},
        {"frozen: the Rack MMU is killed releasing it", killed_mmu, {0}},
        {"frozen: the Rack MMU is killed settling a reader, while it is freed",
         killed_mmu_beside_a_free,
         {0}},
        {"frozen: the Rack MMU is killed looking in a dead reader's place",
         killed_mmu_looking_for_another,
         {0}},
        {"frozen: beside a neighbour that is not", splitting_what_is_not_frozen},
    };
}

}  // namespace bequest::tests
