#include "slab_file.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "kernel.hpp"
#include "layout.hpp"

// Newer than Debian 12's headers.

namespace bequest {

namespace {

class Mapping {
public:
    Mapping(int fd, uint64_t offset, uint64_t nbytes, int protection) : nbytes_(nbytes) {
        // MADV_COLLAPSE wants address and file offset aligned alike: take room to choose.
        room_ = mmap(nullptr, nbytes + kHugePageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1, 0);
        if (room_ == MAP_FAILED) fail("reserving addresses to map a slab", errno);
        const uint64_t start = reinterpret_cast<uint64_t>(room_);
        const uint64_t aligned = (start + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
        base_ = reinterpret_cast<unsigned char*>(aligned);
        if (mmap(base_, nbytes, protection, MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(offset)) ==
            MAP_FAILED) {
            const int error = errno;
            munmap(room_, nbytes_ + kHugePageBytes);
            fail("mapping a slab", error);
        }
    }
    ~Mapping() { munmap(room_, nbytes_ + kHugePageBytes); }
    Mapping(const Mapping&) = delete;
    unsigned char* base() const { return base_; }

private:
    void* room_;
    unsigned char* base_;
    uint64_t nbytes_;
};

}  // namespace

// In steps of one huge page: the small pages that a collapse gives back are then the next ones to be
// populated, so that fresh memory is touched once and not twice.
uint64_t warm_slab(int fd, uint64_t offset, uint64_t nbytes, bool huge) {
    const Mapping mapping(fd, offset, nbytes, PROT_READ | PROT_WRITE);
    uint64_t collapsed = 0;
    for (uint64_t done = 0; done < nbytes; done += kHugePageBytes) {
        unsigned char* at = mapping.base() + done;
        const uint64_t step = std::min(kHugePageBytes, nbytes - done);
        if (madvise(at, step, MADV_POPULATE_WRITE) != 0 && errno != EINVAL) fail("populating a slab", errno);
        if (huge && step == kHugePageBytes && madvise(at, step, MADV_COLLAPSE) == 0) collapsed += step;
    }
    return collapsed;
}

void copy_pages(int source, uint64_t source_offset, int destination, uint64_t destination_offset,
                uint64_t nbytes) {
    const Mapping to(destination, destination_offset, nbytes, PROT_READ | PROT_WRITE);
    // Either file may be cut while it is copied: that fails the call, where touching its pages would kill us.
    for (uint64_t done = 0; done < nbytes;) {
        const ssize_t got =
            pread(source, to.base() + done, nbytes - done, static_cast<off_t>(source_offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = EIO;
        if (got <= 0) fail("copying pages of a slab that has lost its memory", errno);
        done += static_cast<uint64_t>(got);
    }
}

}  // namespace bequest
