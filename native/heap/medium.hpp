// What a heap writes through: every store, flush and fence of it, and nothing else, passes here.
//
// Theory of operation. Two things may end a program in the middle of a change, and what they leave differs.
//
//   a killed process        every store that it executed survives, and none after it. What is owed is that
//   the
//                           compiler keeps the order of the stores; that costs no instruction.
//   a lost compute element  its caches go with it. A store survives once its cache line was written back
//   (flush)
//                           and that was waited for (fence); before that it may survive or not, in any order.
//
// Which of the two a heap is to survive depends on what it lies in: memory that is lost together with the
// processor (`ram`) has no use for flushes, and they cost nothing there; memory that outlasts it (`file`: a
// DAX device, CXL memory) gets clwb and sfence. The code above is the same, and says where either is owed.
//
// A word (8 aligned bytes, written by `store`) is written whole or not at all. A copy may be torn anywhere.
//
// The tests build this with BEQUEST_STEP_HOOK: then each call goes to a recorder, with the place that it came
// from, which is how tests/crash knows every step that could be left out.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef BEQUEST_STEP_HOOK
#include <source_location>
#endif

namespace bequest {

constexpr uint64_t kLineBytes = 64;

#ifdef BEQUEST_STEP_HOOK
using Site = std::source_location;
#define BEQUEST_SITE , ::bequest::Site site = ::bequest::Site::current()
#define BEQUEST_ONLY_SITE ::bequest::Site site = ::bequest::Site::current()
#define BEQUEST_PASS_SITE , site
struct MediumRecorder {
    virtual ~MediumRecorder() = default;
    virtual void store(uint64_t* word, uint64_t value, const Site& site) = 0;
    virtual void copy(void* to, const void* from, uint64_t nbytes, const Site& site) = 0;
    virtual void flush(const void* at, uint64_t nbytes, const Site& site) = 0;
    virtual void fence(const Site& site) = 0;
};
extern MediumRecorder* medium_recorder;
#else
#define BEQUEST_SITE
#define BEQUEST_ONLY_SITE
#define BEQUEST_PASS_SITE
#endif

class Medium {
public:
    enum class Backing { kRam, kFile };
    explicit Medium(Backing backing) : durable_(backing == Backing::kFile) {}

    bool is_durable() const { return durable_; }

    void store(uint64_t& word, uint64_t value BEQUEST_SITE) const {
#ifdef BEQUEST_STEP_HOOK
        if (medium_recorder) return medium_recorder->store(&word, value, site);
#endif
        __atomic_store_n(&word, value, __ATOMIC_RELAXED);
        keep_order();
    }
    void copy(void* to, const void* from, uint64_t nbytes BEQUEST_SITE) const {
#ifdef BEQUEST_STEP_HOOK
        if (medium_recorder) return medium_recorder->copy(to, from, nbytes, site);
#endif
        if (nbytes > 0) std::memcpy(to, from, nbytes);
        keep_order();
    }
    void flush(const void* at, uint64_t nbytes BEQUEST_SITE) const {
#ifdef BEQUEST_STEP_HOOK
        if (medium_recorder) return medium_recorder->flush(at, nbytes, site);
#endif
        if (durable_) write_back(at, nbytes);
    }
    void fence(BEQUEST_ONLY_SITE) const {
#ifdef BEQUEST_STEP_HOOK
        if (medium_recorder) return medium_recorder->fence(site);
#endif
        if (durable_) wait_for_write_back();
    }
    void persist(const void* at, uint64_t nbytes BEQUEST_SITE) const {
        flush(at, nbytes BEQUEST_PASS_SITE);
#ifdef BEQUEST_STEP_HOOK
        fence(site);
#else
        fence();
#endif
    }
    // The change of one word that counts: durable when this returns.
    void commit(uint64_t& word, uint64_t value BEQUEST_SITE) const {
        store(word, value BEQUEST_PASS_SITE);
        persist(&word, sizeof word BEQUEST_PASS_SITE);
    }

private:
    static void keep_order() { asm volatile("" ::: "memory"); }
    static void write_back(const void* at, uint64_t nbytes);
    static void wait_for_write_back();

    bool durable_;
};

}  // namespace bequest
