// The checksums of one slab's sealed pages, as its memory element keeps them.
//
// Theory of operation. A ledger is a file, one word for each page of the slab:
//
//   63       32 31          2 1     0
//   [   sum    ][  number    ][state ]       nothing -> unsummed -> summed
//
// A seal is a number that the ledger gives out, never again for these pages, and writes into the word of each
// of its pages. Whose pages bear it is for the V2P table to say (layout.hpp, Descriptor::seal): the ledger is
// not told when a seal is broken, and keeps sums that nobody asks for until the Rack MMU says so. That is no
// danger, for a number that has gone out of the table never comes back.
//
// The sum of a page is made later than its seal, by whoever comes first: the sweeper, or somebody who wants
// it verified. Every step is one word, by compare-and-swap, so that threads may work on one ledger at a time,
// and the file needs no recovery: it survives the server that wrote it (runtime/safe.py), which goes on with
// what is unsummed.
//
// The slab is mapped for as long as the ledger is open. Somebody of its group may cut the file meanwhile:
// pages that are gone count as different.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace bequest {

struct SealedRun {  // of pages
    uint64_t first, count;
    uint32_t number;
};

struct Checked {
    uint64_t verified = 0;  // pages
    uint64_t unknown = 0;   // that do not bear the number
    std::vector<SealedRun> different;
};

struct Swept {
    uint64_t next = 0;  // page to go on with; that of the end when all was looked at
    uint64_t summed = 0, checked = 0;
    std::vector<SealedRun> different;
};

class SealLedger {
public:
    static constexpr size_t kRunsMax =
        64;  // named at a time; there may be more, which are found the next time

    static int make_file(uint64_t slab_bytes);
    SealLedger(int slab, int file, uint64_t slab_bytes);  // does not keep the descriptors
    ~SealLedger();
    SealLedger(const SealLedger&) = delete;

    uint32_t mark(uint64_t first, uint64_t count);  // the number of a new seal
    Checked check(uint64_t first, uint64_t count, uint32_t number);
    // Sums or checks at most so many of the pages from `first` to `end`; only what is unsummed if so asked.
    Swept sweep(uint64_t first, uint64_t end, uint64_t pages_max, bool only_unsummed);
    void forget(uint64_t first, uint64_t count, uint32_t number = 0);  // 0: whatever its number is
    uint64_t count_sealed() const;
    void stop() {
        stopped_.store(true);
    }  // whoever works on it ends that; nothing is read of the slab after it

private:
    using Word = std::atomic<uint64_t>;
    struct Header;
    uint64_t work(uint64_t first, uint64_t end, Swept& swept);
    void settle(uint64_t page, uint64_t seen, bool there, uint32_t sum, Swept& swept);

    unsigned char* pages_;
    void* room_;
    uint64_t room_bytes_;
    Header* header_;
    Word* words_;
    uint64_t count_;
    std::atomic<bool> stopped_{false};
};

}  // namespace bequest
