// The crash-state explorer: every state that a crash can leave, recovered and compared.
//
// Theory of operation. A scenario is a heap and some steps, each of which is to happen whole or not at all.
// The steps are run once, recorded; then every state of memory that a crash could leave is made from the
// record, and the heap is opened in it. What is in it must be what was in it before the step under way or
// after it, and nothing else (the oracle of Witcher, SOSP 2021); a step that has returned must have happened.
//
//   killed process        all prefixes of the stores. A copy is cut off behind each of its bytes.
//   lost compute element  before each fence, and at the end: each word (8 bytes) that is not durable for
//   certain has any
//                         of the values that it has had since it last was; words are independent of each
//                         other. That is more than the processor does, which keeps the order within a line.
//                         All combinations, if there are at most kCombinationsMax; otherwise these:
//                           all words but any one or two have their newest value (two: of up to 256 words);
//                           no words but any one or two have;
//                           any combination of cache lines, if they are at most 10, else 512 drawn ones;
//                           1,024 drawn combinations of words.
//
// Recovery can be cut off as well: what it does in a state is recorded and explored in the same way, one
// level deep; it must come to the same contents. With each 20,000 states that a scenario has of this kind,
// half as many of its other states are chosen for it. And a heap that has been recovered goes on, in one
// state of 16: some more is written, a crash in the middle of that is recovered too. Equal states are
// counted, and looked at, once.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

#include "recorder.hpp"
#include "world.hpp"

namespace bequest::tests {

constexpr uint64_t kCombinationsMax = 1 << 12;
constexpr uint64_t kPairsMax = 256;  // words
constexpr uint64_t kDrawnWords = 1024, kDrawnLines = 512, kLinesMax = 10;

struct Scenario {
    const char* name;
    std::function<void(World&)> prepare;  // makes the heap, or does not
    std::vector<std::function<void(World&)>> steps;
    bool through_nothing = false;  // between before and after there may be no heap at all
};

struct Tally {
    uint64_t killed = 0, lost = 0;  // states of either kind
    uint64_t in_recovery = 0;       // states of a recovery that was cut off
    uint64_t gone_on = 0;           // states in which a recovered heap was cut off again
    uint64_t drawn = 0;             // places with too many combinations, of which some were drawn
    uint64_t states() const { return killed + lost + in_recovery + gone_on; }
    void add(const Tally& other);
};

struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Explorer {
public:
    explicit Explorer(World& world) : world_(world), recorder_(world.memory(), world.nbytes()) {}

    Recorder& recorder() { return recorder_; }
    static constexpr uint64_t kRecoveryStates = 20'000;
    uint64_t recovery_states = kRecoveryStates, going_on_stride = 16;  // see above
    Tally explore(const Scenario& scenario);                           // throws Violation
    // The sites that its steps reach, and recovery from a kill in them.
    std::set<uint32_t> sites_of(const Scenario& scenario);

private:
    using Image = std::vector<uint64_t>;
    using Visit = std::function<void()>;
    struct Expected {  // contents that may be found
        std::string before, after;
        bool through_nothing, has_ended;
    };
    struct Word {
        uint64_t word;
        std::vector<uint64_t> values;  // the first is durable
        uint64_t flushed;              // which of them will be with the next fence
    };
    using Pending = std::map<uint64_t, Word>;
    using Seen = std::unordered_set<uint64_t>;

    // Calls `visit` for each state, which then is the image.
    void killed_states(const Trace& trace, const Visit& visit);
    // What is not durable goes on from one step to the next.
    void lost_states(const Trace& trace, Pending& pending, const Visit& visit, const Visit& visit_end);
    void note(Pending& pending, const Event& event, const Trace& trace) const;
    void make_durable(Pending& pending);
    void combinations(const std::vector<Word>& words, const Visit& visit);
    void some_combinations(const std::vector<Word>& words, const Visit& visit);
    void write_bytes(uint64_t offset, const unsigned char* bytes, uint64_t nbytes);
    void set(uint64_t word, uint64_t value);
    void choose(const std::vector<Word>& words, uint64_t place, bool newest);

    void check(const Expected& expected);
    std::string recover(Trace* trace);
    void cut_off_recovery(const Trace& trace, const std::string& contents);
    void go_on(const std::string& contents);
    void explore_step(const Trace& trace, Pending& pending, Image& durable, Expected expected);
    void take_image(const Image& image);
    void record(const Scenario& scenario, std::vector<Trace>& traces);
    std::vector<std::string> contents_of(const Scenario& scenario);
    [[noreturn]] void fail(const std::string& what) const;

    World& world_;
    Recorder recorder_;
    Image image_;
    uint64_t digest_ = 0;  // of the image
    Tally tally_;
    std::string where_;  // for a message
    uint64_t random_ = 1;
};

}  // namespace bequest::tests
