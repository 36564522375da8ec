#include "seal_ledger.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <stdexcept>

#include "kernel.hpp"
#include "layout.hpp"
#include "page_sums.hpp"

namespace bequest {

struct SealLedger::Header {
    uint64_t magic, pages;
    std::atomic<uint32_t> last_number;
};

namespace {

constexpr uint64_t kMagic = 0x3147'444c'5145'4542;  // "BEQLDG1"
constexpr uint64_t kBatch = 64;                     // pages summed between two looks at words

enum Progress : uint64_t { kNothing = 0, kUnsummed = 1, kSummed = 2 };

uint64_t word_of(Progress progress, uint32_t number, uint32_t sum) {
    return uint64_t{sum} << 32 | uint64_t{number} << 2 | progress;
}
Progress progress_of(uint64_t word) { return static_cast<Progress>(word & 3); }
uint32_t number_of(uint64_t word) { return static_cast<uint32_t>(word) >> 2; }
uint32_t sum_of(uint64_t word) { return static_cast<uint32_t>(word >> 32); }

uint64_t file_bytes(uint64_t slab_bytes) { return kPageBytes + slab_bytes / kPageBytes * sizeof(uint64_t); }

// False: no room for one more.
bool add(std::vector<SealedRun>& runs, uint64_t page, uint32_t number) {
    if (!runs.empty() && runs.back().first + runs.back().count == page && runs.back().number == number) {
        runs.back().count++;
        return true;
    }
    if (runs.size() == SealLedger::kRunsMax) return false;
    runs.push_back({page, 1, number});
    return true;
}

}  // namespace

int SealLedger::make_file(uint64_t slab_bytes) {
    const int file = memfd_create("bequest-ledger", MFD_CLOEXEC);
    if (file < 0) fail("making a ledger of checksums", errno);
    const uint64_t header[] = {kMagic, slab_bytes / kPageBytes};
    // All of it present: a lack of memory is an error now, not a signal when it is written to.
    int error = posix_fallocate(file, 0, static_cast<off_t>(file_bytes(slab_bytes)));
    if (error == 0 && pwrite(file, header, sizeof header, 0) != sizeof header) error = errno;
    if (error == 0) return file;
    ::close(file);
    fail("making a ledger of checksums", error);
}

// The slab at an address that suits its 2 MiB pages, so that each of them is one entry of the page tables.
SealLedger::SealLedger(int slab, int file, uint64_t slab_bytes) : count_(slab_bytes / kPageBytes) {
    void* ledger = mmap(nullptr, file_bytes(slab_bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (ledger == MAP_FAILED) fail("mapping a ledger of checksums", errno);
    header_ = static_cast<Header*>(ledger);
    words_ = reinterpret_cast<Word*>(static_cast<unsigned char*>(ledger) + kPageBytes);
    if (header_->magic != kMagic || header_->pages != count_) {
        munmap(ledger, file_bytes(slab_bytes));
        throw std::invalid_argument("this file is no ledger of that slab's checksums");
    }
    room_bytes_ = slab_bytes + kHugePageBytes;
    room_ = mmap(nullptr, room_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const auto base = (reinterpret_cast<uint64_t>(room_) + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
    pages_ = static_cast<unsigned char*>(pointer(base));
    if (room_ != MAP_FAILED &&
        mmap(pages_, slab_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, slab, 0) != MAP_FAILED)
        return;
    const int error = errno;
    if (room_ != MAP_FAILED) munmap(room_, room_bytes_);
    munmap(ledger, file_bytes(slab_bytes));
    fail("mapping a slab for its checksums", error);
}

SealLedger::~SealLedger() {
    munmap(room_, room_bytes_);
    munmap(header_, file_bytes(count_ * kPageBytes));
}

uint32_t SealLedger::mark(uint64_t first, uint64_t count) {
    assert(first <= count_ && count <= count_ - first);
    uint32_t number = 0;
    while (number == 0) number = (header_->last_number.fetch_add(1) + 1) & kSealNumberMax;
    for (uint64_t page = first; page < first + count; page++)
        words_[page].store(word_of(kUnsummed, number, 0));
    return number;
}

void SealLedger::forget(uint64_t first, uint64_t count, uint32_t number) {
    assert(first <= count_ && count <= count_ - first);
    for (uint64_t page = first; page < first + count; page++) {
        uint64_t seen = words_[page].load();
        while ((number == 0 || number_of(seen) == number) && seen != 0 &&
               !words_[page].compare_exchange_weak(seen, 0)) {
        }
    }
}

uint64_t SealLedger::count_sealed() const {
    uint64_t sealed = 0;
    for (uint64_t page = 0; page < count_; page++) sealed += words_[page].load() != 0;
    return sealed;
}

// What a page's word said before the page was read counts only if it speaks of the same seal after that.
// Another may have summed the page meanwhile: then it is compared with that.
void SealLedger::settle(uint64_t page, uint64_t seen, bool there, uint32_t sum, Swept& swept) {
    uint64_t now = words_[page].load();
    if (number_of(now) != number_of(seen)) return;
    if (progress_of(now) == kUnsummed && there &&
        words_[page].compare_exchange_strong(now, word_of(kSummed, number_of(seen), sum))) {
        swept.summed++;
        return;
    }
    if (number_of(now) != number_of(seen)) return;
    swept.checked++;
    if (!there || sum != sum_of(now)) add(swept.different, page, number_of(seen));
}

// The pages from `first` to `end`, a batch at most, all of which have a word. How many were dealt with.
uint64_t SealLedger::work(uint64_t first, uint64_t end, Swept& swept) {
    uint64_t seen[kBatch];
    uint32_t sums[kBatch];
    const uint64_t count = std::min(end - first, kBatch);
    for (uint64_t i = 0; i < count; i++) seen[i] = words_[first + i].load();
    if (stopped_.load()) return count;
    if (sum_pages_if_there(pages_ + first * kPageBytes, count, sums)) {
        for (uint64_t i = 0; i < count; i++)
            if (seen[i] != 0) settle(first + i, seen[i], true, sums[i], swept);
        return count;
    }
    for (uint64_t i = 0; i < count; i++) {  // which of them?
        const bool there = sum_pages_if_there(pages_ + (first + i) * kPageBytes, 1, sums);
        if (seen[i] != 0) settle(first + i, seen[i], there, sums[0], swept);
    }
    return count;
}

Swept SealLedger::sweep(uint64_t first, uint64_t end, uint64_t pages_max, bool only_unsummed) {
    end = std::min(end, count_);
    const auto is_wanted = [&](uint64_t page) {
        const Progress progress = progress_of(words_[page].load(std::memory_order_relaxed));
        return progress == kUnsummed || (progress == kSummed && !only_unsummed);
    };
    Swept swept;
    uint64_t done = 0;
    for (swept.next = first; swept.next < end && done < pages_max && !stopped_.load();) {
        if (!is_wanted(swept.next)) {
            swept.next++;
            continue;
        }
        uint64_t stop = swept.next + 1;
        const uint64_t batch = std::min(kBatch, pages_max - done);
        while (stop < end && stop - swept.next < batch && is_wanted(stop)) stop++;
        const uint64_t worked = work(swept.next, stop, swept);
        swept.next += worked, done += worked;
    }
    return swept;
}

Checked SealLedger::check(uint64_t first, uint64_t count, uint32_t number) {
    assert(first <= count_ && count <= count_ - first);
    Checked checked;
    checked.unknown = count;  // until the contrary is found
    const uint64_t end = first + count;
    const auto bears = [&](uint64_t page) { return number_of(words_[page].load()) == number; };
    for (uint64_t page = first; page < end && !stopped_.load();) {
        if (!bears(page)) {
            page++;
            continue;
        }
        uint64_t stop = page + 1;
        while (stop < end && stop - page < kBatch && bears(stop)) stop++;
        Swept swept;
        page += work(page, stop, swept);
        const uint64_t known = swept.summed + swept.checked;
        uint64_t different = 0;
        for (const SealedRun& run : swept.different) {
            different += run.count;
            for (uint64_t i = 0; i < run.count; i++) add(checked.different, run.first + i, run.number);
        }
        checked.unknown -= known;
        checked.verified += known - different;
    }
    return checked;
}

}  // namespace bequest
