#include "explorer.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "hash.hpp"

namespace bequest::tests {

namespace {

constexpr uint64_t kStrideSalt = 0xa0761d6478bd642f;

uint64_t mix(uint64_t word, uint64_t value) {
    return value == 0
               ? 0
               : folded_product(word * 0x9e3779b97f4a7c15 ^ 0x2545f4914f6cdd1d, value ^ 0xd6e8feb86659fd93);
}

}  // namespace

void Tally::add(const Tally& other) {
    killed += other.killed;
    lost += other.lost;
    in_recovery += other.in_recovery;
    gone_on += other.gone_on;
    drawn += other.drawn;
}

void Explorer::fail(const std::string& what) const { throw Violation(where_ + ": " + what); }

// --- images ----------------------------------------------------------------------------------------

void Explorer::set(uint64_t word, uint64_t value) {
    digest_ ^= mix(word, image_[word]) ^ mix(word, value);
    image_[word] = value;
}

void Explorer::write_bytes(uint64_t offset, const unsigned char* bytes, uint64_t nbytes) {
    while (nbytes > 0) {
        const uint64_t within = offset % 8, part = std::min(nbytes, 8 - within);
        uint64_t value = image_[offset / 8];
        std::memcpy(reinterpret_cast<unsigned char*>(&value) + within, bytes, part);
        set(offset / 8, value);
        offset += part, bytes += part, nbytes -= part;
    }
}

void Explorer::take_image(const Image& image) {
    image_ = image;
    digest_ = 0;
    for (uint64_t i = 0; i < image_.size(); i++) digest_ ^= mix(i, image_[i]);
}

// --- the two ways to crash --------------------------------------------------------------------------

// Leaves the image as the last of them.
void Explorer::killed_states(const Trace& trace, const Visit& visit) {
    visit();
    for (const Event& event : trace.events) {
        const unsigned char* bytes = &trace.bytes[event.data];
        if (event.step == Step::kStore) {
            write_bytes(event.offset, bytes, event.nbytes);
            visit();
        } else if (event.step == Step::kCopy) {
            for (uint64_t i = 0; i < event.nbytes; i++) {
                write_bytes(event.offset + i, bytes + i, 1);
                visit();
            }
        }
    }
}

void Explorer::note(Pending& pending, const Event& event, const Trace& trace) const {
    if (event.step == Step::kFlush) {
        const uint64_t end = rounded_up(event.offset + event.nbytes, kLineBytes) / 8;
        for (auto at = pending.lower_bound(event.offset / kLineBytes * kLineBytes / 8);
             at != pending.end() && at->first < end; ++at)
            at->second.flushed = at->second.values.size() - 1;
        return;
    }
    const unsigned char* bytes = &trace.bytes[event.data];
    for (uint64_t offset = event.offset, end = offset + event.nbytes; offset < end;) {
        const uint64_t word = offset / 8, within = offset % 8, part = std::min(end - offset, 8 - within);
        Word& state = pending.try_emplace(word, Word{word, {image_[word]}, 0}).first->second;
        uint64_t value = state.values.back();
        std::memcpy(reinterpret_cast<unsigned char*>(&value) + within, bytes, part);
        if (value != state.values.back()) state.values.push_back(value);
        offset += part, bytes += part;
    }
}

void Explorer::make_durable(Pending& pending) {
    for (auto at = pending.begin(); at != pending.end();) {
        Word& state = at->second;
        set(state.word, state.values[state.flushed]);
        state.values.erase(state.values.begin(), state.values.begin() + static_cast<long>(state.flushed));
        state.flushed = 0;
        at = state.values.size() == 1 ? pending.erase(at) : std::next(at);
    }
}

// Leaves the image as what is durable for certain.
void Explorer::lost_states(const Trace& trace, Pending& pending, const Visit& visit, const Visit& visit_end) {
    const auto words = [&] {
        std::vector<Word> all;
        for (const auto& [word, state] : pending) all.push_back(state);
        return all;
    };
    for (const Event& event : trace.events) {
        if (event.step != Step::kFence) {
            note(pending, event, trace);
        } else {
            combinations(words(), visit);
            make_durable(pending);
        }
    }
    combinations(words(), visit);
    combinations(words(), visit_end);
}

void Explorer::choose(const std::vector<Word>& words, uint64_t place, bool newest) {
    set(words[place].word, newest ? words[place].values.back() : words[place].values.front());
}

void Explorer::combinations(const std::vector<Word>& words, const Visit& visit) {
    uint64_t count = 1;
    for (const Word& word : words)
        if (count <= kCombinationsMax) count *= word.values.size();
    if (count > kCombinationsMax) {
        tally_.drawn++;
        some_combinations(words, visit);
    } else {
        std::vector<uint64_t> choice(words.size(), 0);
        for (uint64_t i = 0; i < count; i++) {
            visit();
            for (uint64_t at = 0; at < words.size(); at++) {  // count on
                choice[at] = (choice[at] + 1) % words[at].values.size();
                set(words[at].word, words[at].values[choice[at]]);
                if (choice[at] != 0) break;
            }
        }
    }
    for (uint64_t at = 0; at < words.size(); at++) choose(words, at, false);
}

void Explorer::some_combinations(const std::vector<Word>& words, const Visit& visit) {
    const auto draw = [&] {
        return random_ = folded_product(random_ + 0x9e3779b97f4a7c15, 0xd6e8feb86659fd93);
    };
    for (const bool newest : {false, true}) {  // all but one or two
        for (uint64_t at = 0; at < words.size(); at++) choose(words, at, !newest);
        visit();
        for (uint64_t first = 0; first < words.size(); first++) {
            choose(words, first, newest);
            visit();
            for (uint64_t second = first + 1; second < words.size() && words.size() <= kPairsMax; second++) {
                choose(words, second, newest);
                visit();
                choose(words, second, !newest);
            }
            choose(words, first, !newest);
        }
    }
    std::vector<uint64_t> lines;
    for (const Word& word : words)
        if (lines.empty() || lines.back() != word.word / 8) lines.push_back(word.word / 8);
    const bool all_lines = lines.size() <= kLinesMax;
    for (uint64_t i = 0; i < (all_lines ? 1ull << lines.size() : kDrawnLines); i++) {
        const uint64_t drawn = draw();
        for (uint64_t at = 0; at < words.size(); at++) {
            const auto line = static_cast<uint64_t>(
                std::lower_bound(lines.begin(), lines.end(), words[at].word / 8) - lines.begin());
            choose(words, at,
                   (all_lines ? i : folded_product(drawn, line + 0x8ebc6af09c88c6e3)) >>
                           (all_lines ? line : 17) &
                       1);
        }
        visit();
    }
    for (uint64_t i = 0; i < kDrawnWords; i++) {
        for (const Word& word : words) set(word.word, word.values[draw() % word.values.size()]);
        visit();
    }
}

// --- what is found there ----------------------------------------------------------------------------

// Opens the heap in the image; what it did to it is in the trace.
std::string Explorer::recover(Trace* trace) {
    world_.close();
    std::memcpy(world_.memory(), image_.data(), world_.nbytes());
    Trace unused;
    try {
        recorder_.start(trace ? *trace : unused);
        world_.open();
    } catch (const CorruptHeap& corrupt) {
        recorder_.stop();
        if (reinterpret_cast<SegmentHeader*>(world_.memory())->magic != kHeapMagic) return "no heap";
        fail(std::string("recovery says: ") + corrupt.what());
    }
    recorder_.stop();
    if (trace) recorder_.reorder(*trace);
    try {
        return world_.contents();
    } catch (const std::exception& wrong) {
        fail(std::string("recovered, and yet: ") + wrong.what());
    }
}

void Explorer::check(const Expected& expected) {
    Trace trace;
    const std::string contents = recover(&trace);
    const bool is_before =
        (contents == expected.before || (expected.through_nothing && contents == "no heap")) &&
        !expected.has_ended;
    const bool is_after = contents == expected.after;
    if (!is_before && !is_after)
        fail("found\n    " + contents + "\n  before\n    " + expected.before + "\n  after\n    " +
             expected.after + (expected.has_ended ? "\n  which it had reached" : ""));
    if (contents == "no heap") return;
    const uint64_t digest = digest_;
    if (digest % going_on_stride == 0) go_on(contents);
    const uint64_t stride = 1ull << std::min<uint64_t>(tally_.in_recovery / recovery_states, 40);
    if (trace.events.size() > 3 && folded_product(digest, kStrideSalt) % stride == 0)
        cut_off_recovery(trace, contents);
}

void Explorer::cut_off_recovery(const Trace& trace, const std::string& contents) {
    Seen seen;
    const Image image = image_;
    const std::string where = where_;
    where_ += ", then the recovery is cut off";
    const Visit visit = [&] {
        if (!seen.insert(digest_).second) return;
        tally_.in_recovery++;
        const std::string found = recover(nullptr);
        if (found != contents) fail("found\n    " + found + "\n  and without that\n    " + contents);
    };
    killed_states(trace, visit);
    take_image(image);
    Pending pending;
    lost_states(trace, pending, visit, visit);
    take_image(image);
    where_ = where;
}

// A transaction that is cut off before its commit: of it, and of all earlier ones, nothing must come back.
void Explorer::go_on(const std::string& contents) {
    const std::string where = where_;
    where_ += ", then the heap goes on and is cut off";
    const Image image = image_;
    for (uint64_t words = 1; words <= 4; words++) {
        recover(nullptr);
        Heap& heap = world_.heap();
        Trace trace;
        recorder_.start(trace);
        heap.begin();
        const std::vector<Root> roots = heap.roots();
        auto* cell = reinterpret_cast<uint64_t*>(roots.empty() ? 0 : roots.front().address);
        for (uint64_t i = 0; cell && i < words; i++) {
            heap.snapshot(cell + i, 8);
            heap.medium().store(cell[i], 0xdead);
            heap.medium().flush(cell + i, 8);
        }
        heap.medium().fence();
        recorder_.stop();
        std::memcpy(image_.data(), world_.memory(), world_.nbytes());
        tally_.gone_on++;
        const std::string found = recover(nullptr);
        if (found != contents) fail("found\n    " + found + "\n  and without that\n    " + contents);
        image_ = image;
    }
    where_ = where;
}

// --- a scenario --------------------------------------------------------------------------------------

// What is in the heap before the first step, and after each: from a run in which nothing is left out.
std::vector<std::string> Explorer::contents_of(const Scenario& scenario) {
    world_.may_grow = false;
    world_.clear(0xa5);
    scenario.prepare(world_);
    std::vector<std::string> contents{world_.contents()};
    for (const auto& step : scenario.steps) {
        step(world_);
        contents.push_back(world_.contents());
    }
    return contents;
}

// Leaves the image as it was before the first step.
void Explorer::record(const Scenario& scenario, std::vector<Trace>& traces) {
    const Mutant* const mutant = std::exchange(recorder_.mutant, nullptr);
    world_.may_grow = false;
    world_.clear(0xa5);
    scenario.prepare(world_);
    Image start(world_.nbytes() / 8);
    std::memcpy(start.data(), world_.memory(), world_.nbytes());
    take_image(start);
    recorder_.mutant = mutant;
    for (uint64_t i = 0; i < traces.size(); i++) {
        recorder_.start(traces[i]);
        scenario.steps[i](world_);
        recorder_.stop();
        recorder_.reorder(traces[i]);
    }
}

// On entering, the image is what a killed process leaves at the beginning; on leaving, at the end.
void Explorer::explore_step(const Trace& trace, Pending& pending, Image& durable, Expected expected) {
    Seen seen, seen_at_end;
    const std::string where = where_;
    const auto look = [&](Seen& seen, uint64_t& count) {
        return [&, this] {
            if (!seen.insert(digest_).second) return;
            count++;
            check(expected);
        };
    };
    where_ = where + ", killed process";
    killed_states(trace, look(seen, tally_.killed));
    const Image end = image_;
    const Expected ended{expected.before, expected.after, expected.through_nothing, true};
    where_ = where + ", killed after it";
    check(ended);
    where_ = where + ", lost cache";
    take_image(durable);
    lost_states(trace, pending, look(seen, tally_.lost), [&] {
        if (!seen_at_end.insert(digest_).second) return;
        where_ = where + ", lost cache after it";
        check(ended);
    });
    durable = image_;
    take_image(end);
}

Tally Explorer::explore(const Scenario& scenario) {
    tally_ = {};
    where_ = scenario.name;
    const std::vector<std::string> contents = contents_of(scenario);
    std::vector<Trace> traces(scenario.steps.size());
    record(scenario, traces);
    Pending pending;
    Image durable = image_;
    for (uint64_t i = 0; i < traces.size(); i++) {
        where_ = std::string(scenario.name) + ", step " + std::to_string(i + 1);
        explore_step(traces[i], pending, durable,
                     {contents[i], contents[i + 1], scenario.through_nothing, false});
    }
    return tally_;
}

std::set<uint32_t> Explorer::sites_of(const Scenario& scenario) {
    std::set<uint32_t> sites;
    const auto add = [&](const Trace& trace) {
        for (const Event& event : trace.events) sites.insert(event.site);
    };
    std::vector<Trace> traces(scenario.steps.size());
    record(scenario, traces);
    for (const Trace& trace : traces) {
        add(trace);
        Seen seen;
        killed_states(trace, [&] {
            if (!seen.insert(digest_).second) return;
            Trace recovery;
            recover(&recovery);
            add(recovery);
        });
    }
    return sites;
}

}  // namespace bequest::tests
