#include "explorer.hpp"

#include <exception>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <utility>

#include "doorbell.hpp"

namespace bequest::tests {

namespace {

struct Killed {};   // thrown through an operation whose process dies
struct Unwound {};  // thrown through an operation whose schedule is given up
Explorer* exploring = nullptr;

constexpr unsigned char kRunners = (1 << kOperationsMax) - 1, kWritten = 1 << kOperationsMax,
                        kContended = 0x80;

unsigned char* map_zeroes(uint64_t bytes) {
    void* at =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert(at != MAP_FAILED);
    return static_cast<unsigned char*>(at);
}

}  // namespace

Explorer::Explorer(const void* memory, uint64_t bytes)
    : memory_(static_cast<const unsigned char*>(memory)),
      bytes_(bytes),
      contention_(map_zeroes(bytes / 4 + 1)),
      dirty_(map_zeroes(bytes / kPageBytes + 1)) {
    exploring = this;
    write_hook = on_write;
    step_hook = on_step;
}

Explorer::~Explorer() {
    write_hook = nullptr;
    step_hook = nullptr;
    exploring = nullptr;
    munmap(contention_, bytes_ / 4 + 1);
    munmap(dirty_, bytes_ / kPageBytes + 1);
}

void Explorer::on_read(const void* field) { exploring->access(field, false); }
void Explorer::on_write(const void* field) { exploring->access(field, true); }
void Explorer::on_step(const char* where) {
    if (!exploring->in_operation() || exploring->unwinding_) return;
    exploring->steps_.push_back({exploring->events_.size(), exploring->running_, where});
    const int running = std::exchange(exploring->running_, -1);  // looking is no step
    if (exploring->after_step) exploring->after_step(running, where);
    exploring->running_ = running;
}
bool Explorer::on_sleep(Shared<uint32_t>& word, uint32_t seen) { return exploring->sleep(word, seen); }
void Explorer::on_wake(Shared<uint32_t>& word, uint32_t sleepers) { exploring->wake(word, sleepers); }

// --- all schedules ---------------------------------------------------------------------------------

Exploration Explorer::explore(const std::function<std::vector<Operation>()>& prepare,
                              const std::function<std::string(const std::vector<bool>&)>& check,
                              uint64_t schedules_max) {
    while (fibers_.size() < kOperationsMax) fibers_.push_back(std::make_unique<Fiber>(&home_));
    forget_contention();
    Exploration result;
    do {
        nodes_.clear();
        found_contention_ = false;
        result = {};
        do {
            operations_ = prepare();
            assert(operations_.size() <= kOperationsMax);
            run_schedule();
            if (!failure_.empty()) throw Violation(failure_);
            if (is_pruned_) {
                result.pruned++;
                continue;
            }
            result.schedules++;
            std::vector<bool> killed;
            for (size_t i = 0; i < operations_.size(); i++) killed.push_back(runners_[i].killed);
            result.killed |= std::find(killed.begin(), killed.end(), true) != killed.end();
            const std::string wrong = check(killed);
            if (!wrong.empty()) throw Violation(wrong + "\n" + story());
            result.complete = result.schedules < schedules_max;
        } while (result.complete && !found_contention_ && step_back());
    } while (found_contention_);
    return result;
}

bool Explorer::step_back() {
    while (!nodes_.empty()) {
        Node& node = nodes_.back();
        node.done |= 1u << node.chosen;
        const uint32_t left = node.backtrack & ~node.done & ~node.sleep;
        if (left != 0) {
            node.chosen = std::countr_zero(left);
            return true;
        }
        nodes_.pop_back();
    }
    return false;
}

// --- one schedule ------------------------------------------------------------------------------------

void Explorer::run_schedule() {
    events_.clear();
    steps_.clear();
    failure_.clear();
    std::fill(variables_.begin(), variables_.end(), Variable{});
    is_pruned_ = stuck_ = false;
    for (Runner& runner : runners_) runner = {};
    read_hook = on_read;
    sleep_hook = on_sleep;
    wake_hook = on_wake;
    for (size_t i = 0; i < operations_.size(); i++)
        if (operations_[i].after < 0) start(static_cast<int>(i));
    for (int last = -1;;) {
        const int next = choose(last);
        if (next < 0) break;
        running_ = next;
        happen(next);
        Fiber::switch_between(home_, *fibers_[static_cast<size_t>(next)]);
        last = std::exchange(running_, -1);
        if (runners_[last].state != Runner::kEnded) continue;  // nobody could go on
        for (size_t i = 0; i < operations_.size(); i++)
            if (operations_[i].after == last) start(static_cast<int>(i));
    }
    if (stuck_) fail("everybody sleeps: a wake-up was lost");
    unwind();
    read_hook = nullptr;
    sleep_hook = nullptr;
    wake_hook = nullptr;
}

// Runs an operation up to its first access that somebody else might mind.
void Explorer::start(int i) {
    Runner& runner = runners_[i];
    const int after = operations_[static_cast<size_t>(i)].after;
    if (after >= 0) std::copy_n(runners_[after].clock, kOperationsMax, runner.clock);
    runner.state = Runner::kReady;
    Fiber& fiber = *fibers_[static_cast<size_t>(i)];
    fiber.body = [this, i] { run_body(i); };
    running_ = i;
    starting_ = true;
    Fiber::switch_between(home_, fiber);
    starting_ = false;
    running_ = -1;
    for (size_t j = 0; runner.state == Runner::kEnded && j < operations_.size(); j++)
        if (operations_[j].after == i) start(static_cast<int>(j));
}

void Explorer::run_body(int i) {
    try {
        operations_[static_cast<size_t>(i)].run();
    } catch (const Killed&) {
    } catch (const Unwound&) {
    } catch (const std::exception& e) {
        fail(operations_[static_cast<size_t>(i)].name + " threw: " + e.what());
    }
    runners_[i].state = Runner::kEnded;
}

void Explorer::access(const void* field, bool write) {
    if (write) note_dirty(field, 1);
    if (running_ < 0) return;
    Runner& runner = runners_[running_];
    if (std::uncaught_exceptions() > 0)
        return;  // of one who is killed: a destructor, which in truth does not run
    if (unwinding_) throw Unwound{};
    if (runner.killed) throw Killed{};
    if (write && ++runner.writes >= operations_[static_cast<size_t>(running_)].killed_at) {
        runner.killed = true;
        throw Killed{};
    }
    if (!is_contended(field, write)) return;
    const auto [found, added] = variable_of_.try_emplace(field, static_cast<uint32_t>(variables_.size()));
    if (added) variables_.emplace_back();
    stop_at({field, found->second, write});
}

void Explorer::stop_at(const Access& access) {
    const int self = running_;
    runners_[self].pending = access;
    if (starting_) {
        Fiber::switch_between(*fibers_[static_cast<size_t>(self)], home_);
        if (unwinding_) throw Unwound{};
    } else {
        hand_over(self);
    }
}

// Goes on with whoever is next; returns when that is `self` again.
void Explorer::hand_over(int self) {
    const int next = choose(self);
    if (next == self) return happen(self);
    Fiber* to = &home_;
    if (next >= 0) {
        running_ = next;
        happen(next);
        to = fibers_[static_cast<size_t>(next)].get();
    }
    Fiber::switch_between(*fibers_[static_cast<size_t>(self)], *to);
    if (unwinding_) throw Unwound{};
}

void Explorer::unwind() {
    unwinding_ = true;
    for (size_t i = 0; i < operations_.size(); i++) {
        if (runners_[i].state != Runner::kReady && runners_[i].state != Runner::kAsleep) continue;
        running_ = static_cast<int>(i);
        Fiber::switch_between(home_, *fibers_[i]);
    }
    running_ = -1;
    unwinding_ = false;
}

// --- who goes next -------------------------------------------------------------------------------------

int Explorer::choose(int current) {
    if (is_pruned_ || stuck_) return -1;
    if (events_.size() == nodes_.size()) {
        Node node = new_node(current);
        if (node.chosen < 0) {
            is_pruned_ = node.enabled != 0;
            for (const Runner& runner : runners_) stuck_ |= !is_pruned_ && runner.state == Runner::kAsleep;
            return -1;
        }
        nodes_.push_back(node);
    }
    const int next = nodes_[events_.size()].chosen;
    assert(runners_[next].state == Runner::kReady && "the same choices must lead to the same run");
    return next;
}

Explorer::Node Explorer::new_node(int current) const {
    Node node;
    for (int i = 0; i < kOperationsMax; i++) {
        if (runners_[i].state != Runner::kReady) continue;
        node.enabled |= 1u << i;
        node.pending[i] = runners_[i].pending;
    }
    node.sleep = inherited_sleep();
    const uint32_t candidates = node.enabled & ~node.sleep;
    if (candidates == 0) return node;
    if (brute_force) node.backtrack = node.enabled;
    const bool stay = current >= 0 && (candidates >> current & 1) != 0;
    node.chosen = stay ? current : std::countr_zero(candidates);
    node.backtrack |= 1u << node.chosen;
    return node;
}

// Whoever could have gone before the last event, and was explored there, need not go after it either unless
// the event changed what it will see.
uint32_t Explorer::inherited_sleep() const {
    if (nodes_.empty() || brute_force) return 0;
    const Node& parent = nodes_.back();
    uint32_t sleep = (parent.sleep | parent.done) & ~(1u << parent.chosen);
    for (int i = 0; i < kOperationsMax; i++)
        if ((sleep >> i & 1) != 0 && dependent(parent.pending[i], parent.pending[parent.chosen]))
            sleep &= ~(1u << i);
    return sleep;
}

// What has to have happened before its pending access, because it touches the same field.
void Explorer::join_past(Runner& runner, int i) const {
    const Variable& variable = variables_[runner.pending.variable];
    const auto join = [&](uint32_t event) {
        for (int q = 0; event > 0 && q < kOperationsMax; q++)
            runner.clock[q] = std::max(runner.clock[q], events_[event - 1].clock[q]);
    };
    for (int q = 0; q < kOperationsMax; q++) {
        if (q == i) continue;
        join(variable.last_write[q]);
        if (runner.pending.write) join(variable.last_read[q]);
    }
}

void Explorer::happen(int i) {
    Runner& runner = runners_[i];
    find_races(i);
    const auto index = static_cast<uint32_t>(events_.size());
    Variable& variable = variables_[runner.pending.variable];
    join_past(runner, i);
    runner.clock[i] = index + 1;
    (runner.pending.write ? variable.last_write : variable.last_read)[i] = index + 1;
    Event event{i, runner.pending, {}};
    std::copy_n(runner.clock, kOperationsMax, event.clock);
    events_.push_back(event);
}

void Explorer::find_races(int i) {
    const Runner& runner = runners_[i];
    const Variable& variable = variables_[runner.pending.variable];
    for (int q = 0; q < kOperationsMax; q++) {
        if (q == i) continue;
        const uint32_t last =
            std::max(variable.last_write[q], runner.pending.write ? variable.last_read[q] : 0);
        if (last > runner.clock[q]) add_backtrack(last - 1, i);
    }
}

// A race: the pending access of `i` might have come before that event, together with all that has happened
// since and does not follow from it. One of those who can begin such a run must be tried there. (To try `i`
// itself is not enough when it could not begin: it may be asleep there, for another reason.)
void Explorer::add_backtrack(uint32_t event, int i) {
    Node& node = nodes_[event];
    const uint32_t ways = beginners_after(event, i) & node.enabled;
    if (ways == 0) {
        node.backtrack |= node.enabled;
    } else if ((ways & node.backtrack) == 0) {
        node.backtrack |= (ways >> i & 1) != 0 ? 1u << i : ways & -ways;
    }
}

// Who has, among the events after that one that do not follow from it, and the pending access of `i`, a first
// one that waits for no other of them.
uint32_t Explorer::beginners_after(uint32_t event, int i) const {
    const int racer = events_[event].runner;
    std::vector<uint32_t> others;  // of those events, each runner's first
    uint32_t seen = 0, beginners = 0;
    const auto consider = [&](int runner, const Clock& clock) {
        const bool waits = std::any_of(others.begin(), others.end(), [&](uint32_t earlier) {
            return clock[events_[earlier].runner] > earlier;
        });
        if ((seen >> runner & 1) == 0 && !waits) beginners |= 1u << runner;
    };
    for (auto j = event + 1; j < events_.size(); j++) {
        if (events_[j].clock[racer] > event) continue;  // follows from it
        consider(events_[j].runner, events_[j].clock);
        if ((seen >> events_[j].runner & 1) == 0) others.push_back(j);
        seen |= 1u << events_[j].runner;
    }
    Runner runner = runners_[i];
    join_past(runner, i);
    runner.clock[racer] = 0;  // in this run it comes before the event that it races with
    consider(i, runner.clock);
    return beginners;
}

// --- sleep and wake-up: futexes without the kernel -----------------------------------------------------

bool Explorer::sleep(Shared<uint32_t>& word, uint32_t seen) {
    access(&word, true);
    if (static_cast<std::atomic<uint32_t>&>(word).load() != seen) return true;
    Runner& runner = runners_[running_];
    runner.state = Runner::kAsleep;
    runner.sleeps_on = &word;
    runner.asleep_since = events_.size();
    const int self = running_;
    if (starting_) {
        Fiber::switch_between(*fibers_[static_cast<size_t>(self)], home_);
        if (unwinding_) throw Unwound{};
    } else {
        hand_over(self);
    }
    return true;
}

// As the kernel does: those who have slept longest.
void Explorer::wake(Shared<uint32_t>& word, uint32_t sleepers) {
    access(&word, true);
    for (; sleepers > 0; sleepers--) {
        Runner* first = nullptr;
        for (Runner& runner : runners_)
            if (runner.state == Runner::kAsleep && runner.sleeps_on == &word &&
                (!first || runner.asleep_since < first->asleep_since))
                first = &runner;
        if (!first) return;
        for (int q = 0; q < kOperationsMax; q++)
            first->clock[q] = std::max(first->clock[q], runners_[running_].clock[q]);
        first->state = Runner::kReady;
        first->pending.write = false;  // it looks at the word again
    }
}

// --- what is shared --------------------------------------------------------------------------------------

bool Explorer::is_contended(const void* field, bool write) {
    const auto offset = static_cast<uint64_t>(static_cast<const unsigned char*>(field) - memory_);
    if (offset >= bytes_ || brute_force) return offset < bytes_;
    unsigned char& known = contention_[offset / 4];
    if (known == 0) touched_.push_back(offset / 4);
    known |= static_cast<unsigned char>(1u << running_ | (write ? kWritten : 0));
    if ((known & kContended) == 0 && (known & kWritten) != 0 &&
        std::popcount(unsigned{known} & kRunners) > 1) {
        known |= kContended;
        found_contention_ = true;
    }
    return (known & kContended) != 0;
}

void Explorer::forget_contention() {
    for (uint64_t index : touched_) contention_[index] = 0;
    touched_.clear();
    variable_of_.clear();
    variables_.clear();
}

void Explorer::note_dirty(const void* field, uint64_t bytes) {
    const auto offset = static_cast<uint64_t>(static_cast<const unsigned char*>(field) - memory_);
    if (offset >= bytes_) return;
    for (uint64_t page = offset / kPageBytes; page <= (offset + bytes - 1) / kPageBytes; page++) {
        if (dirty_[page] == 0) dirty_pages_.push_back(page);
        dirty_[page] = 1;
    }
}

std::vector<uint64_t> Explorer::take_dirty_pages() {
    for (uint64_t page : dirty_pages_) dirty_[page] = 0;
    return std::exchange(dirty_pages_, {});
}

// --- telling -----------------------------------------------------------------------------------------------

void Explorer::fail(const std::string& what) {
    if (failure_.empty()) failure_ = what + "\n" + story();
}

std::string Explorer::story() const {
    std::string text = "  in this order:";
    auto step = steps_.begin();
    for (size_t i = 0; i <= events_.size(); i++) {
        for (; step != steps_.end() && step->events <= i; ++step)
            text += "\n    " + name_of(step->runner) + ": (" + step->where + ")";
        if (i == events_.size()) break;
        const Access& access = events_[i].access;
        text += "\n    " + name_of(events_[i].runner) + (access.write ? ": writes " : ": reads ") +
                (describe ? describe(access.field) : "");
    }
    for (size_t i = 0; i < operations_.size(); i++)
        if (runners_[i].killed)
            text += "\n    (" + operations_[i].name + " was killed before its write " +
                    std::to_string(runners_[i].writes) + ")";
    return text;
}

}  // namespace bequest::tests
