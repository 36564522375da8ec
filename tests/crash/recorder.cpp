#include "recorder.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <tuple>

namespace bequest::tests {

std::string Recorder::SiteName::text() const {
    static const char* const kNames[] = {"store", "copy", "flush", "fence"};
    return file + ":" + std::to_string(line) + " " + kNames[static_cast<int>(step)] + " in " + function;
}

bool Recorder::SiteName::operator<(const SiteName& other) const {
    return std::tie(file, line, column, step) < std::tie(other.file, other.line, other.column, other.step);
}

// The names of functions come with return types and arguments: what counts is between them.
static std::string short_name(std::string name) {
    name = name.substr(0, name.find('('));
    return name.substr(name.find_last_of(' ') + 1);
}

uint32_t Recorder::number(Step step, const Site& site) {
    const std::pair<const char*, uint64_t> key{site.file_name(), uint64_t{site.line()} << 32 |
                                                                     uint64_t{site.column()} << 8 |
                                                                     static_cast<uint64_t>(step)};
    if (const auto known = quick_.find(key); known != quick_.end()) return known->second;
    const std::string path = site.file_name();
    SiteName name{step, path.substr(path.find_last_of('/') + 1), short_name(site.function_name()),
                  site.line(), site.column()};
    const auto [place, is_new] = numbers_.try_emplace(name, static_cast<uint32_t>(sites_.size()));
    if (is_new) sites_.push_back(name);
    quick_[key] = place->second;
    return place->second;
}

void Recorder::know_all(const std::vector<SiteName>& sites) {
    sites_ = sites;
    for (uint32_t i = 0; i < sites.size(); i++) numbers_[sites[i]] = i;
}

void Recorder::start(Trace& trace) {
    trace.clear();
    trace_ = &trace;
    medium_recorder = this;
}

void Recorder::stop() {
    medium_recorder = nullptr;
    trace_ = nullptr;
}

bool Recorder::enter(Step step, const void* at, uint64_t nbytes, const void* data, const Site& site) {
    const uint32_t number = this->number(step, site);
    const bool is_mutant = mutant && mutant->site == number;
    if (is_mutant && mutant->fault == Fault::kSkip) {
        has_differed_ = true;
        return false;
    }
    const uint64_t offset =
        step == Step::kFence ? 0 : static_cast<uint64_t>(static_cast<const unsigned char*>(at) - memory_);
    if (offset > nbytes_ || nbytes > nbytes_ - offset)
        throw std::runtime_error("a step outside the memory, at " + sites_[number].text());
    if (step == Step::kStore && offset % 8 != 0)
        throw std::runtime_error("a word that is not aligned, at " + sites_[number].text());
    trace_->events.push_back({step, number, offset, nbytes, trace_->bytes.size()});
    if (data) {
        const auto* bytes = static_cast<const unsigned char*>(data);
        trace_->bytes.insert(trace_->bytes.end(), bytes, bytes + nbytes);
    }
    return true;
}

void Recorder::store(uint64_t* word, uint64_t value, const Site& site) {
    if (enter(Step::kStore, word, sizeof value, &value, site)) *word = value;
}
void Recorder::copy(void* to, const void* from, uint64_t nbytes, const Site& site) {
    if (nbytes > 0 && enter(Step::kCopy, to, nbytes, from, site)) std::memmove(to, from, nbytes);
}
void Recorder::flush(const void* at, uint64_t nbytes, const Site& site) {
    enter(Step::kFlush, at, nbytes, nullptr, site);
}
void Recorder::fence(const Site& site) { enter(Step::kFence, nullptr, 0, nullptr, site); }

namespace {

std::vector<Event> with_early(const std::vector<Event>& events, uint32_t site) {
    std::vector<Event> moved;
    const auto is_fence = [](const Event& event) { return event.step == Step::kFence; };
    for (const Event& event : events) {
        if (event.site != site) {
            moved.push_back(event);
            continue;
        }
        auto fence = std::find_if(moved.rbegin(), moved.rend(), is_fence);
        if (fence != moved.rend()) fence = std::find_if(fence + 1, moved.rend(), is_fence);
        moved.insert(fence.base(), event);
    }
    return moved;
}

std::vector<Event> with_late(const std::vector<Event>& events, uint32_t site) {
    struct Waiting {
        Event event;
        bool flushed;
    };
    std::vector<Event> moved;
    std::vector<Waiting> waiting;
    for (const Event& event : events) {
        if (event.site == site) {
            waiting.push_back({event, false});
            continue;
        }
        moved.push_back(event);
        for (Waiting& one : waiting)
            one.flushed |= event.step == Step::kFlush && event.offset <= one.event.offset &&
                           one.event.offset < event.offset + event.nbytes;
        if (event.step != Step::kFence) continue;
        for (const Waiting& one : waiting)
            if (one.flushed) moved.push_back(one.event);
        std::erase_if(waiting, [](const Waiting& one) { return one.flushed; });
    }
    for (const Waiting& one : waiting) moved.push_back(one.event);
    return moved;
}

}  // namespace

void Recorder::reorder(Trace& trace) {
    if (!mutant || mutant->fault == Fault::kSkip) return;
    const auto moved = mutant->fault == Fault::kEarly ? with_early(trace.events, mutant->site)
                                                      : with_late(trace.events, mutant->site);
    has_differed_ |=
        !std::equal(moved.begin(), moved.end(), trace.events.begin(), [](const Event& a, const Event& b) {
            return a.site == b.site && a.data == b.data && a.offset == b.offset;
        });
    trace.events = moved;
}

}  // namespace bequest::tests
