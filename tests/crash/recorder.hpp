// Records what a heap does to its memory, and can leave one step of it out.
//
// A *site* is a place in the source from which a store, copy, flush or fence is asked for. A mutant is a site
// and what is done to it: the step is skipped, or comes too early or too late. What the steps of a run were
// is a trace.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "medium.hpp"

namespace bequest::tests {

enum class Step : uint8_t { kStore, kCopy, kFlush, kFence };

struct Event {
    Step step;
    uint32_t site;
    uint64_t offset, nbytes;  // in the memory that is recorded
    uint64_t data;            // where its bytes begin in the trace's
};

struct Trace {
    std::vector<Event> events;
    std::vector<unsigned char> bytes;
    void clear() { events.clear(), bytes.clear(); }
};

enum class Fault : uint8_t {
    kSkip,   // the step is not taken
    kEarly,  // it comes before the fence before it, and before the steps that this fence waited for
    kLate,   // it comes after it was flushed, and after the fence that waited for that
};
struct Mutant {
    uint32_t site;
    Fault fault;
};

class Recorder : public MediumRecorder {
public:
    Recorder(unsigned char* memory, uint64_t nbytes) : memory_(memory), nbytes_(nbytes) {}

    struct SiteName {
        Step step;
        std::string file, function;
        unsigned line, column;
        std::string text() const;
        bool operator<(const SiteName& other) const;
    };
    const std::vector<SiteName>& sites() const { return sites_; }

    // Sites get these numbers, as another recorder has given them.
    void know_all(const std::vector<SiteName>& sites);
    void know(const Recorder& other) { know_all(other.sites_); }

    // All medium calls from here on go into this trace, until `stop`.
    void start(Trace& trace);
    void stop();
    const Mutant* mutant = nullptr;
    // The orders that a mutant changes are changed in a trace: the program itself does not see it.
    void reorder(Trace& trace);
    // Whether the mutant has made any difference yet.
    bool has_differed() const { return has_differed_; }

    void store(uint64_t* word, uint64_t value, const Site& site) override;
    void copy(void* to, const void* from, uint64_t nbytes, const Site& site) override;
    void flush(const void* at, uint64_t nbytes, const Site& site) override;
    void fence(const Site& site) override;

private:
    bool enter(Step step, const void* at, uint64_t nbytes, const void* data, const Site& site);
    uint32_t number(Step step, const Site& site);

    unsigned char* memory_;
    uint64_t nbytes_;
    Trace* trace_ = nullptr;
    bool has_differed_ = false;
    std::vector<SiteName> sites_;
    std::map<SiteName, uint32_t> numbers_;
    std::map<std::pair<const char*, uint64_t>, uint32_t> quick_;
};

}  // namespace bequest::tests
