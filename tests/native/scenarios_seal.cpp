// Seals: whoever owns sealed memory has it closed for writing, and nobody else, whatever the seal met on its
// way.
//
// A seal that came into the table behind the back of its owner would be the worst of mistakes: it goes on
// writing, and the memory element takes the pages away from it because they differ.
#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint32_t kNumber = 7;

// What the table says of a region, and what its owner does: for every region whose holder still has it.
std::string disagreement(World& w) {
    for (const auto& [id, process] : w.processes) {
        for (size_t i = 0; w.table.life(id) == Life::kLive && i < w.holds(id); i++) {
            const Extent e = w.held(id, i);
            if (!process->still_ours(e)) continue;
            const uint64_t start = process->address(e), end = start + e.word.pages() * kPageBytes;
            const bool is_sealed = w.table.seal(e.descriptor) != 0;
            for (uint64_t page = start; page < end; page += kPageBytes)
                if (process->space().is_sealed(page, page + kPageBytes) != is_sealed)
                    return is_sealed ? "sealed memory can be written to by its owner"
                                     : "memory that is not sealed cannot be written to by its owner";
        }
    }
    return "";
}

void begin(World& w, uint32_t processes = 2) {
    for (uint32_t id = 1; id <= processes; id++) {
        w.admit(id);
        w.add_slab(id, id, 4);
        w.split_and_merge_once(id);
    }
    w.also = [&w] { return disagreement(w); };
}

void seal(World& w, uint32_t id) {
    Attachment& process = *w.processes.at(id);
    const Extent e = w.held(id);
    process.protect_pages(e);
    process.seal(e, kNumber);
}

void unseal(World& w, uint32_t id) { w.processes.at(id)->unseal(w.held(id)); }

Operation adoption(World& w, int after) {
    return {"2 adopts", [&w] { w.adopt(2, 1); }, after};
}

std::vector<Operation> sealing_beside_a_theft(World& w) {
    begin(w);
    w.alloc(1, 1);
    return {{"1 seals", [&w] { seal(w, 1); }}, w.theft(1, 2), adoption(w, 1)};
}

std::vector<Operation> unsealing_beside_a_theft(World& w) {
    begin(w);
    w.alloc(1, 1);
    seal(w, 1);
    return {{"1 unseals", [&w] { unseal(w, 1); }}, w.theft(1, 2), adoption(w, 1)};
}

// The thief dies before it knows what it has, and the memory comes home and is allocated.
std::vector<Operation> sealing_too_late(World& w) {
    begin(w, 3);
    w.grant(3, 1, {w.alloc(3, 1)});
    w.accept(1, 1);
    return {{"1 seals", [&w] { seal(w, 1); }},
            w.mmu("steals from 1 for 2, and buries 2", [&w] { w.rob(1, 2, 1), w.bury(2); }),
            {"3 allocates", [&w] { w.try_alloc(3, 4); }, 1}};
}

std::vector<Operation> splitting(World& w) {
    begin(w);
    w.alloc(1, 2);
    seal(w, 1);
    return {{"1 splits", [&w] { w.split(1, w.held(1), 1); }}};
}

std::vector<Operation> splitting_beside_a_theft(World& w) {
    begin(w);
    w.alloc(1, 2);
    seal(w, 1);
    return {{"1 splits", [&w] { w.split(1, w.held(1), 1); }}, w.theft(1, 2), adoption(w, 1)};
}

std::vector<Operation> granting(World& w) {
    begin(w);
    w.alloc(1, 1);
    seal(w, 1);
    return {{"1 grants", [&w] { w.grant(1, 2, {w.held(1)}); }}, {"2 accepts", [&w] { w.accept(2, 2); }}};
}

std::vector<Operation> granting_to_one_who_dies(World& w) {
    begin(w);
    w.alloc(1, 1);
    seal(w, 1);
    return {{"1 grants", [&w] { w.grant(1, 2, {w.held(1)}); }}, w.burial(2)};
}

// What was sealed is free for any use.
std::vector<Operation> freeing_at_home(World& w) {
    begin(w);
    w.alloc(1, 4);
    seal(w, 1);
    return {{"1 frees and allocates",
             [&w] {
                 w.free(1, w.held(1));
                 w.try_alloc(1, 4);
             }},
            {"2 allocates", [&w] { w.try_alloc(2, 4); }}};
}

std::vector<Operation> freeing_from_afar(World& w) {
    begin(w);
    w.grant(2, 1, {w.alloc(2, 4)});
    w.accept(1, 1);
    seal(w, 1);
    return {{"1 frees", [&w] { w.free(1, w.held(1)); }}, {"2 allocates", [&w] { w.try_alloc(2, 4); }}};
}

// Two seals are not one: neither of both neighbours could be told from the other.
std::vector<Operation> merging(World& w) {
    begin(w);
    w.split(1, w.alloc(1, 2), 1);
    seal(w, 1);
    w.also = [&w]() -> std::string {
        return w.holds(1) == 2 ? disagreement(w) : "a sealed region was merged with one that is not";
    };
    return {{"1 merges", [&w] {
                 Extent left = w.held(1, 0), right = w.held(1, 1);
                 if (w.processes.at(1)->merge(left, right)) w.drop(1, w.held(1, 1));
             }}};
}

}  // namespace

std::vector<Scenario> seal_scenarios() {
    return {
        {"seal: beside a theft", sealing_beside_a_theft},
        {"seal: broken beside a theft", unsealing_beside_a_theft},
        {"seal: by one who has been robbed, when the memory is another's", sealing_too_late},
        {"seal: split", splitting},
        {"seal: split beside a theft", splitting_beside_a_theft},
        {"seal: granted", granting},
        {"seal: granted to one who is buried", granting_to_one_who_dies},
        {"seal: freed at home", freeing_at_home},
        {"seal: freed from afar", freeing_from_afar},
        {"seal: not merged with what bears another", merging},
    };
}

}  // namespace bequest::tests
