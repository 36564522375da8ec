// Thefts: the Rack MMU takes memory from a process for another, whatever the victim is in the middle of.
//
// The victim of most of these lives. It goes on beside the theft in every order, which includes that it is
// stopped at any point until the theft is over; it is also killed before each of its writes, and either found
// dead and buried, or not found dead: then it is stopped for ever, as by SIGSTOP, and World::check looks what
// it blocks.
#include "scenario.hpp"

namespace bequest::tests {

namespace {

using Scene = void (*)(World&);
using Act = void (*)(World&);

// 1 is the victim, 2 the thief, 3 somebody else.
void settle_down(World& w, uint32_t processes = 2, uint32_t pages = 4) {
    for (uint32_t id = 1; id <= processes; id++) {
        w.admit(id);
        w.add_slab(id, id, pages);
        w.split_and_merge_once(id);
    }
}

// --- what the victim has, and what it is at ----------------------------------------------------------------

void owning_four(World& w) { settle_down(w), w.alloc(1, 4); }
void owning_two_and_two(World& w) { settle_down(w), w.split(1, w.alloc(1, 4), 2); }
void owning_a_run(World& w) { settle_down(w), w.alloc(1, 2); }
void owning_nothing(World& w) { settle_down(w); }
void owning_one(World& w) { settle_down(w, 3), w.alloc(1, 1); }
void owning_two(World& w) { settle_down(w, 3), w.alloc(1, 1), w.alloc(1, 1); }
void owning_from_afar(World& w) {
    settle_down(w, 3);
    w.grant(3, 1, {w.alloc(3, 1)});
    w.accept(1, 1);
}
void sent_something(World& w) {
    settle_down(w, 3);
    w.grant(3, 1, {w.alloc(3, 1)});
}

void allocates(World& w) { w.try_alloc(1, 2); }
void splits(World& w) { w.split(1, w.held(1), 2); }
void merges(World& w) { w.merge(1, w.held(1, 0), w.held(1, 1)); }
void splits_and_merges(World& w) {
    const Extent right = w.split(1, w.held(1), 2);
    if (right.descriptor != kNoDescriptor) w.merge(1, w.held(1, 0), right);
}
void frees(World& w) { w.free(1, w.held(1)); }
void frees_and_allocates(World& w) {
    w.free(1, w.held(1));
    w.try_alloc(1, 2);
}
void cuts_off(World& w) {
    w.lengths_known = false;  // a run may be stolen before it is cut to size
    w.try_alloc(1, 1);
}
void grants(World& w) { w.grant(1, 3, {w.held(1)}); }
void grants_two(World& w) { w.grant(1, 3, {w.held(1, 0), w.held(1, 1)}); }
void accepts(World& w) { w.accept(1, 1); }

// --- how it is robbed meanwhile ----------------------------------------------------------------------------

Operation adoption(World& w, int after) {
    return {"2 adopts", [&w] { w.adopt(2, 1); }, after};
}

// It lives and goes on, in whatever order.
template <Scene scene, Act act>
std::vector<Operation> alive(World& w) {
    scene(w);
    return {{"1 acts", [&w] { act(w); }}, w.theft(1, 2), adoption(w, 1)};
}

// So it does, and only a single look is taken at what it has.
template <Scene scene, Act act>
std::vector<Operation> alive_and_busy(World& w) {
    scene(w);
    return {{"1 acts", [&w] { act(w); }}, w.theft(1, 2, -1, 1)};
}

// So it does, and was stopped for longer than anybody waits while it was opening memory.
template <Scene scene, Act act>
std::vector<Operation> alive_and_slow(World& w) {
    w.is_hasty = true;
    return alive<scene, act>(w);
}

// The victim's steps follow each other while it is looked at, and helped along.
template <Scene scene, Act act>
std::vector<Operation> looked_at(World& w) {
    scene(w);
    return {{"1 acts", [&w] { act(w); }}, w.mmu("lists what 1 has", [&w] { w.steward->stealable(1); })};
}

// It is stopped for ever, and robbed after that.
template <Scene scene, Act act>
std::vector<Operation> stopped(World& w) {
    scene(w);
    return {{"1 acts", [&w] { act(w); }}, w.theft(1, 2, 0), adoption(w, 1)};
}

// It dies while it is being robbed, and then is buried.
template <Scene scene, Act act>
std::vector<Operation> dying(World& w) {
    scene(w);
    return {{"1 acts", [&w] { act(w); }}, w.theft(1, 2, -1, 1), w.burial(1, 0)};
}

// It dies, is settled, and robbed of everything; the thief empties its inbox, and later the rest is released.
template <Scene scene, Act act>
std::vector<Operation> dead(World& w) {
    scene(w);
    return {{"1 acts", [&w] { act(w); }},
            w.mmu(
                "finds 1 dead and robs it for 2",
                [&w] {
                    w.mark_dead(1);
                    w.rob_the_dead(1, 2);
                    if (!w.steward->stealable(1).empty()) w.also = [] { return "the dead kept something"; };
                },
                0),
            {"2 adopts and inherits",
             [&w] {
                 w.adopt(2, 1);
                 w.inherit(2, 1);
             },
             1},
            w.mmu("releases the rest", [&w] { w.steward->release(1); }, 1)};
}

// --- with others about -------------------------------------------------------------------------------------

std::vector<Operation> grant_that_is_accepted(World& w) {
    owning_one(w);
    return {{"1 grants to 3", [&w] { grants(w); }}, w.theft(1, 2), {"3 accepts", [&w] { w.accept(3, 3); }}};
}

std::vector<Operation> grant_of_two_that_are_accepted(World& w) {
    owning_two(w);
    return {{"1 grants two to 3", [&w] { grants_two(w); }},
            w.theft(1, 2, -1, 1),
            {"3 accepts", [&w] { w.accept(3, 3); }, 1}};
}

// The inbox of 3 is full up to a cell that the victim has: it is stopped for ever, and others want to send.
std::vector<Operation> stopped_before_another_sender(World& w) {
    owning_one(w);
    return {{"1 grants to 3", [&w] { grants(w); }},
            w.theft(1, 2, 0),
            {"2 sends to 3, who accepts",
             [&w] {
                 w.send(2, 3);
                 w.accept(3, 3);
             },
             1}};
}

// The receiver of the victim's grant is robbed in turn, or dies.
std::vector<Operation> grant_to_one_who_is_robbed(World& w) {
    owning_one(w);
    return {{"1 grants to 3", [&w] { grants(w); }},
            {"3 accepts", [&w] { w.accept(3, 3); }},
            w.mmu("steals from 1 and 3 for 2", [&w] { w.rob(1, 2), w.rob(3, 2); })};
}

std::vector<Operation> grant_to_one_who_is_buried(World& w) {
    owning_one(w);
    return {{"1 grants to 3", [&w] { grants(w); }}, w.theft(1, 2, -1, 1), w.burial(3)};
}

// 2 robs 1, 3 robs 2, before and after 2 knows what it has.
std::vector<Operation> a_thief_is_robbed(World& w) {
    owning_two(w);
    return {w.theft(1, 2), adoption(w, 0), w.theft(2, 3, 0), {"3 adopts", [&w] { w.adopt(3, 2); }, 2}};
}

// Two thieves, while the victim merges: exactly one gets each page.
std::vector<Operation> two_thieves(World& w) {
    settle_down(w, 3);
    w.split(1, w.alloc(1, 4), 2);
    return {{"1 merges", [&w] { merges(w); }}, w.theft(1, 2, -1, 1), w.theft(1, 3, 1, 1)};
}

// What was stolen is used at once: granted back to the victim, freed, and split, while the victim frees it.
std::vector<Operation> granted_back(World& w) {
    owning_one(w);
    return {{"1 frees and accepts",
             [&w] {
                 frees(w);
                 w.accept(1, 1);
             }},
            w.theft(1, 2),
            {"2 adopts and grants to 1",
             [&w] {
                 if (w.adopt(2, 1) > 0) w.grant(2, 1, {w.held(2)});
             },
             1}};
}

std::vector<Operation> freed_by_the_thief(World& w) {
    owning_from_afar(w);
    return {{"1 frees", [&w] { frees(w); }},
            w.theft(1, 2),
            {"2 adopts and frees",
             [&w] {
                 if (w.adopt(2, 1) > 0) w.free(2, w.held(2));
             },
             1},
            {"3 allocates", [&w] { w.try_alloc(3, 1), w.try_alloc(3, 1); }, 2}};
}

std::vector<Operation> freed_by_the_thief_at_the_victims(World& w) {
    settle_down(w);
    w.alloc(1, 2);
    w.rob(1, 2);
    return {{"1 allocates, twice", [&w] { w.try_alloc(1, 2), w.try_alloc(1, 2); }},
            {"2 adopts and frees", [&w] {
                 if (w.adopt(2, 1) > 0) w.free(2, w.held(2));
             }}};
}

std::vector<Operation> split_and_merged_by_the_thief(World& w) {
    owning_two_and_two(w);
    return {{"1 merges", [&w] { merges(w); }},
            w.theft(1, 2, -1, 2),
            {"2 adopts, merges and splits",
             [&w] {
                 if (w.adopt(2, 1) == 2) w.merge(2, w.held(2, 0), w.held(2, 1));
                 if (w.holds(2) == 1) w.split(2, w.held(2), 1);
             },
             1}};
}

// A part only: the region that has this page, and what is being made one with it.
std::vector<Operation> a_part(World& w) {
    owning_two_and_two(w);
    const uint64_t right = w.table.extent(w.held(1, 1).descriptor).address;
    w.also = [&w, right]() -> std::string {
        for (uint32_t i = 0; i < w.table.extent_limit(); i++) {
            const OwnerWord word = w.table.owner(i);
            const uint64_t start = w.table.extent(i).address;
            if (word.is(State::kOwned, 1) && start <= right && right < start + word.pages() * kPageBytes)
                return "what was asked for was not stolen";
        }
        return "";
    };
    return {{"1 merges", [&w] { merges(w); }}, w.mmu("steals a part from 1 for 2", [&w, right] {
                const std::vector<AddressRange> only{{right, 1}};
                w.rob(1, 2, 3, &only);
            })};
}

std::vector<Operation> a_part_of_the_stopped(World& w) {
    std::vector<Operation> operations = a_part(w);
    operations[1].after = 0;
    return operations;
}

// The left side of a merge: the right one, if it is not part of it by then, is the victim's as before.
std::vector<Operation> a_left_part(World& w) {
    owning_two_and_two(w);
    const uint64_t left = w.table.extent(w.held(1, 0).descriptor).address;
    return {{"1 merges", [&w] { merges(w); }}, w.mmu("steals a part from 1 for 2", [&w, left] {
                const std::vector<AddressRange> only{{left, 1}};
                w.rob(1, 2, 1, &only);
            })};
}

// Of oneself: the old handles are spent, and there are new ones.
std::vector<Operation> of_oneself(World& w) {
    owning_two_and_two(w);
    return {w.theft(1, 1), {"1 adopts", [&w] { w.adopt(1, 1); }, 0}};
}

// Memory that is kept out of it.
std::vector<Operation> not_stealable(World& w) {
    settle_down(w);
    w.also = [&w]() -> std::string {
        for (uint32_t i = 0; i < w.table.extent_limit(); i++)
            if (w.table.owner(i).is(State::kOwned, 2) && !w.table.is_stealable(i))
                return "memory was stolen that is not to be";
        return "";
    };
    return {{"1 allocates for itself, and splits",
             [&w] {
                 if (w.try_alloc(1, 2, kNotStealable)) w.split(1, w.held(1), 1);
             }},
            w.theft(1, 2),
            adoption(w, 1)};
}

std::vector<Operation> freed_and_stealable_again(World& w) {
    settle_down(w);
    w.alloc(1, 2, kNotStealable);
    return {{"1 frees and allocates",
             [&w] {
                 w.free(1, w.held(1));
                 w.try_alloc(1, 2);
             }},
            w.theft(1, 2),
            adoption(w, 1)};
}

// --- the heir
// ------------------------------------------------------------------------------------------------

void with_mail_for_the_dead(World& w) {
    owning_one(w);
    w.grant(3, 1, {w.alloc(3, 1)});
}

std::vector<Operation> heir_beside_a_late_sender(World& w) {
    with_mail_for_the_dead(w);
    w.alloc(3, 1);
    return {w.mmu("finds 1 dead and robs it for 2", [&w] { w.mark_dead(1), w.rob_the_dead(1, 2); }),
            {"3 grants to 1", [&w] { w.grant(3, 1, {w.held(3)}); }},
            {"2 inherits", [&w] { w.inherit(2, 1); }, 0}};
}

std::vector<Operation> heir_beside_a_late_sender_who_dies(World& w) {
    with_mail_for_the_dead(w);
    const Extent late = w.alloc(3, 1);
    return {w.mmu("finds 1 dead and robs it for 2", [&w] { w.mark_dead(1), w.rob_the_dead(1, 2); }),
            {"3 grants to 1", [&w, late] { w.grant(3, 1, {late}); }},
            w.burial(3, 1),
            {"2 inherits", [&w] { w.inherit(2, 1); }, 2}};
}

std::vector<Operation> heir_beside_a_release(World& w) {
    with_mail_for_the_dead(w);
    w.mark_dead(1);
    w.rob_the_dead(1, 2);
    return {{"2 inherits", [&w] { w.inherit(2, 1); }},
            w.mmu("releases 1", [&w] { w.steward->release(1); }),
            w.burial(2, 0)};
}

// The id of the dead has another bearer, whose messages are none of the heir's business.
std::vector<Operation> heir_of_a_former_bearer(World& w) {
    settle_down(w, 3);
    w.admit(4);
    w.grant(3, 4, {w.alloc(3, 1)});
    w.mark_dead(4);
    w.rob_the_dead(4, 2);
    w.also = [&w]() -> std::string {
        return w.incarnations[4] == 2 && w.heard_by(2, "3#1") ? "the heir has read another's message" : "";
    };
    return {{"2 inherits", [&w] { w.inherit(2, 4); }},
            w.mmu("gives the id to another",
                  [&w] {
                      w.steward->release(4);
                      if (w.steward->holdings(4).extents > 0) return;
                      w.table.vacate(4);
                      w.admit(4, 2);
                      w.send(3, 4);
                  }),
            {"4 accepts",
             [&w] {
                 if (w.incarnations[4] == 2) w.accept(4, 4);
             },
             1}};
}

// The thief dies: adopting, or before; what it had is its own, and is freed or stolen as such.
std::vector<Operation> a_thief_dies(World& w) {
    owning_two(w);
    w.rob(1, 2);
    return {adoption(w, -1), w.burial(2, 0), {"1 allocates, twice", [&w] {
                                                  w.try_alloc(1, 1), w.try_alloc(1, 1);
                                              }}};
}

std::vector<Operation> a_thief_dies_and_is_robbed(World& w) {
    owning_two(w);
    return {w.theft(1, 2), adoption(w, 0),
            w.mmu(
                "finds 2 dead and robs it for 3",
                [&w] {
                    w.mark_dead(2);
                    w.rob_the_dead(2, 3);
                    w.steward->release(2);
                },
                1)};
}

}  // namespace

std::vector<Scenario> theft_scenarios() {
    return {
        {"theft: beside an alloc", alive<owning_nothing, allocates>},
        {"theft: beside a slow alloc", alive_and_slow<owning_nothing, allocates>},
        {"theft: beside a slow grant of two", alive_and_slow<owning_two, grants_two>},
        {"theft: beside a split", alive<owning_four, splits>},
        {"theft: beside a merge", alive<owning_two_and_two, merges>},
        {"theft: considered, beside a split and a merge", looked_at<owning_four, splits_and_merges>},
        {"theft: beside a free at home", alive<owning_one, frees>},
        {"theft: beside a free at home and an alloc", alive_and_busy<owning_a_run, frees_and_allocates>},
        {"theft: beside an alloc that splits", alive_and_busy<owning_nothing, cuts_off>},
        {"theft: beside a free from afar", alive<owning_from_afar, frees>},
        {"theft: beside a grant", alive<owning_one, grants>},
        {"theft: beside a grant of two", alive<owning_two, grants_two>},
        {"theft: beside an accept", alive<sent_something, accepts>},
        {"theft: from one who is stopped in an alloc", stopped<owning_nothing, allocates>, {0}},
        {"theft: from one who is stopped in an alloc that splits", stopped<owning_nothing, cuts_off>, {0}},
        {"theft: from one who is stopped in a split", stopped<owning_four, splits>, {0}},
        {"theft: from one who is stopped in a merge", stopped<owning_two_and_two, merges>, {0}},
        {"theft: from one who is stopped in a free", stopped<owning_from_afar, frees>, {0}},
        {"theft: from one who is stopped in a grant", stopped<owning_two, grants_two>, {0}},
        {"theft: from one who is stopped in an accept", stopped<sent_something, accepts>, {0}},
        {"theft: from one who dies in an alloc", dying<owning_nothing, allocates>, {0}},
        {"theft: from one who dies in a split", dying<owning_four, splits>, {0}},
        {"theft: from one who dies in a merge", dying<owning_two_and_two, merges>, {0}},
        {"theft: from one who dies in a free", dying<owning_from_afar, frees>, {0}},
        {"theft: from one who dies in a grant", dying<owning_one, grants>, {0}},
        {"theft: from one who dies in an accept", dying<sent_something, accepts>, {0}},
        {"theft: from one who died in a split", dead<owning_four, splits>, {0}},
        {"theft: from one who died in a merge", dead<owning_two_and_two, merges>, {0}},
        {"theft: from one who died in a grant of two", dead<owning_two, grants_two>, {0}},
        {"theft: from one who died in an accept", dead<sent_something, accepts>, {0}},
        {"theft: beside a grant that is accepted", grant_that_is_accepted},
        {"theft: beside a grant of two that are accepted", grant_of_two_that_are_accepted},
        {"theft: from one who is stopped, and others send", stopped_before_another_sender, {0}},
        {"theft: from a sender and its receiver", grant_to_one_who_is_robbed},
        {"theft: from a sender whose receiver is buried", grant_to_one_who_is_buried},
        {"theft: from a thief", a_thief_is_robbed},
        {"theft: two thieves", two_thieves},
        {"theft: what was stolen is granted back", granted_back},
        {"theft: what was stolen is freed", freed_by_the_thief},
        {"theft: what was stolen is freed at the victim's", freed_by_the_thief_at_the_victims},
        {"theft: what was stolen is merged and split", split_and_merged_by_the_thief},
        {"theft: a part of what is being merged", a_part},
        {"theft: the left part of what is being merged", a_left_part},
        {"theft: a part, from one who is stopped in a merge", a_part_of_the_stopped, {0}},
        {"theft: from oneself", of_oneself},
        {"theft: not of what is not stealable", not_stealable},
        {"theft: of what is stealable again", freed_and_stealable_again},
        {"heir: beside a late sender", heir_beside_a_late_sender},
        {"heir: beside a late sender, who dies", heir_beside_a_late_sender_who_dies, {1}},
        {"heir: beside a release, and dies", heir_beside_a_release, {0}},
        {"heir: of one whose id is given to another", heir_of_a_former_bearer},
        {"thief: dies adopting", a_thief_dies, {0}},
        {"thief: dies adopting, and is robbed", a_thief_dies_and_is_robbed, {1}},
    };
}

}  // namespace bequest::tests
