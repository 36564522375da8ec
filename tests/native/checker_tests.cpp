// A checker that cannot fail checks nothing: each is shown what it must see.
#include "scenario.hpp"

namespace bequest::tests {

namespace {

// A world of 1 and 2 in which 1 owns four pages of eight, and one message waits for 2.
void build(World& w) {
    w.clear();
    w.admit(1);
    w.admit(2);
    w.add_slab(1, 1, 8);
    w.alloc(1, 4);
    w.send(1, 2);
}

std::string sees(const char* what, const std::function<void(World&)>& breaks) {
    World w;
    build(w);
    if (const std::string wrong = w.check(); !wrong.empty()) return "a sane world is called broken: " + wrong;
    build(w);
    breaks(w);
    const std::string wrong = w.check();
    return wrong.find(what) != std::string::npos ? ""
                                                 : std::string("not \"") + what + "\" but \"" + wrong + "\"";
}

void set_owner(World& w, const Extent& e, State state, uint32_t id, uint64_t pages) {
    w.table.extent(e.descriptor).owner.store(e.word.next(state, id, pages).bits);
}

}  // namespace

std::vector<Test> checker_tests() {
    return {
        {"checkers: a page without owner",
         [] { return sees("has no owner", [](World& w) { set_owner(w, w.held(1), State::kOwned, 1, 3); }); }},
        {"checkers: a page with two owners",
         [] {
             return sees("has two owners", [](World& w) { set_owner(w, w.held(1), State::kOwned, 1, 5); });
         }},
        {"checkers: an extent of no slab",
         [] {
             return sees("a slab that is not there",
                         [](World& w) { w.table.slab_record(1).id_plus_one.store(0); });
         }},
        {"checkers: an embryo whose intent is gone",
         [] {
             return sees("has no owner", [](World& w) { set_owner(w, w.held(1), State::kEmbryo, 1, 4); });
         }},
        {"checkers: memory in flight to nobody's inbox",
         [] {
             return sees("in flight for ever", [](World& w) {
                 w.processes.at(1)->close_pages(w.held(1));
                 set_owner(w, w.held(1), State::kInFlight, 2, 4);
                 w.drop(1, w.held(1));
             });
         }},
        {"checkers: memory that its owner does not know of",
         [] { return sees("and knows of 0", [](World& w) { w.drop(1, w.held(1)); }); }},
        {"checkers: pages open to one who does not own them",
         [] { return sees("can still touch", [](World& w) { w.processes.at(2)->open_pages(w.held(1)); }); }},
        {"checkers: pages closed to one who owns them",
         [] { return sees("cannot touch it", [](World& w) { w.processes.at(1)->close_pages(w.held(1)); }); }},
        {"checkers: a cell in the hand of the dead",
         [] { return sees("for ever", [](World& w) { Inbox(w.table, 2).claim(3); }); }},
        {"checkers: a message behind the head",
         [] { return sees("behind the head", [](World& w) { w.table.slot(2).head.fetch_add(1); }); }},
        {"checkers: a message that never arrives",
         [] {
             return sees("arrived 0 times", [](World& w) {
                 Delivery delivery;
                 const Inbox inbox(w.table, 2);
                 inbox.finish(*inbox.take(2, delivery), 2);
             });
         }},
        {"checkers: messages out of order",
         [] {
             return sees("came before", [](World& w) {
                 w.send(1, 2);
                 std::swap(w.table.cell(2, 0).tag[2], w.table.cell(2, 1).tag[2]);
             });
         }},
        {"checkers: a free run that its home does not know of",
         [] {
             return sees("free pages and finds", [](World& w) {
                 const Extent e = w.held(1);
                 w.drop(1, e);
                 set_owner(w, e, State::kFree, 1, 4);
             });
         }},
        {"checkers: the dead are not released",
         [] {
             return sees("a settled process is left to settle", [](World& w) {
                 Inbox(w.table, 2).claim(1);
                 w.mark_dead(1);
             });
         }},
    };
}

}  // namespace bequest::tests
