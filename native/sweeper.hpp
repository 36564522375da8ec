// A thread that works on ledgers of checksums while nothing else wants the processor.
//
// Theory of operation. It runs under SCHED_IDLE, so that any thread of any application goes before it,
// wherever that runs; and it cannot leave that class again. Therefore it may hold nothing that somebody waits
// for: it takes neither the GIL nor a lock, and is given one piece of work at a time, small, through a word
// that either side changes in its turn. The rest is waiting on file descriptors.
#pragma once

#include <memory>
#include <optional>

#include "seal_ledger.hpp"

namespace bequest {

class Sweeper {
public:
    Sweeper();
    ~Sweeper();  // the thread ends when it has done what it is at
    Sweeper(const Sweeper&) = delete;

    int fileno() const;  // readable when there is something to collect
    // As SealLedger::sweep. There must be nothing under way.
    void start(std::shared_ptr<SealLedger> ledger, uint64_t first, uint64_t end, uint64_t pages_max,
               bool only_unsummed);
    std::optional<Swept> collect();

private:
    struct Desk;
    static void work(const std::shared_ptr<Desk>& desk);
    std::shared_ptr<Desk> desk_;
};

}  // namespace bequest
