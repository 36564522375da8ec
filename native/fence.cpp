#include "fence.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "doorbell.hpp"
#include "kernel.hpp"
#include "layout.hpp"
#include "mappings.hpp"

// Newer than Debian 12's headers.
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1  // Linux 5.11
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)  // Linux 5.19
#endif

namespace bequest {

namespace {

constexpr uint64_t kFeatures = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
// A second registration replaces the modes of the first, so both always go together: a guard must not lift a
// fence.
constexpr uint64_t kModes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
constexpr int kMappingTriesMax = 50;
constexpr unsigned long kTimerSlack_ns = 1'000;

// Between looks for a death: it is a matter of 0.1 ms, of some ms on a busy machine, or will not come.
int64_t pause_after(int64_t waited_ns) {
    if (waited_ns < 2'000'000) return 20'000;
    return waited_ns < 20'000'000 ? 200'000 : 1'000'000;
}

// What is there already, under the same modes, stays as it is.
int enrol_range(int uffd, const PageRun& range) {
    uffdio_register request{{range.address, range.nbytes}, kModes, 0};
    return ioctl(uffd, UFFDIO_REGISTER, &request) == 0 ? 0 : errno;
}

int change_protection(int uffd, const PageRun& range, uint64_t mode) {
    uffdio_writeprotect request{{range.address, range.nbytes}, mode};
    for (;;) {
        if (ioctl(uffd, UFFDIO_WRITEPROTECT, &request) == 0) return 0;
        if (errno != EAGAIN && errno != EINTR) return errno;
    }
}

int guard_range(int uffd, const PageRun& range) { return enrol_range(uffd, range); }

int fence_range(int uffd, const PageRun& range) {
    const int error = enrol_range(uffd, range);
    return error ? error : change_protection(uffd, range, UFFDIO_WRITEPROTECT_MODE_WP);
}

int open_range(int uffd, const PageRun& range) { return change_protection(uffd, range, 0); }

// A mapping that is not registered has never been protected.
int open_mapping(int uffd, const PageRun& range) {
    const int error = open_range(uffd, range);
    return error == ENOENT ? 0 : error;
}

bool has_gaps(int error) { return error == EINVAL || error == ENOMEM || error == ENOENT; }

using Act = int (*)(int uffd, const PageRun& range);  // says what went wrong

// The process may map and unmap meanwhile: then what is found is not there any more.
int on_each_mapping(int uffd, pid_t os_pid, const PageRun& range, Act act) {
    int error = 0;
    for (int tries = 0; tries < kMappingTriesMax; tries++) {
        error = 0;
        for (const PageRun& mapped : mappings_within(os_pid, range))
            if ((error = act(uffd, mapped)) != 0) break;
        if (!has_gaps(error)) break;
    }
    return error;
}

// The usual case is one or two ioctls for a range. Where there is a gap in the mappings, each of those that
// are there.
void on_what_is_mapped(int uffd, pid_t os_pid, std::span<const PageRun> ranges, const char* what, Act act,
                       Act act_on_mapping) {
    for (const PageRun& range : ranges) {
        const int error = act(uffd, range);
        if (error == 0) continue;
        const int again = has_gaps(error) ? on_each_mapping(uffd, os_pid, range, act_on_mapping) : error;
        if (again == ESRCH) return;  // nobody is left
        if (again != 0) fail(what, again);
    }
}

}  // namespace

int open_fence() {
    const long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (fd < 0) fail("opening a userfaultfd", errno);
    uffdio_api api{UFFD_API, kFeatures, 0};
    if (ioctl(static_cast<int>(fd), UFFDIO_API, &api) != 0) {
        const int error = errno;
        ::close(static_cast<int>(fd));
        fail("asking a userfaultfd for SIGBUS and for write protection of shared memory", error);
    }
    return static_cast<int>(fd);
}

bool is_fence(int fd) {
    char path[64], text[512];
    std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(path, text, sizeof text);
    constexpr char kName[] = "anon_inode:[userfaultfd]";  // a file's link is an absolute path
    if (length != sizeof kName - 1 || std::memcmp(text, kName, sizeof kName - 1) != 0) return false;
    std::snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    std::FILE* about = std::fopen(path, "re");
    if (!about) return false;
    unsigned long long version = 0, features = 0;
    bool found = false;
    while (!found && std::fgets(text, sizeof text, about))
        found = std::sscanf(text, "API: %llx:%llx:", &version, &features) == 2;
    std::fclose(about);
    return found && version == UFFD_API && (features & kFeatures) == kFeatures;
}

bool is_gone(int uffd) {
    const PageRun somewhere{kWindowBase, kPageBytes};
    uffdio_writeprotect request{{somewhere.address, somewhere.nbytes}, UFFDIO_WRITEPROTECT_MODE_WP};
    return ioctl(uffd, UFFDIO_WRITEPROTECT, &request) != 0 && errno == ESRCH;
}

bool wait_until_gone(int uffd, int64_t timeout_ns) {
    if (is_gone(uffd)) return true;
    prctl(PR_SET_TIMERSLACK, kTimerSlack_ns);  // of this thread
    const int64_t start = monotonic_ns();
    for (int64_t waited = 0; waited < timeout_ns; waited = monotonic_ns() - start) {
        const timespec rest{0, std::min(pause_after(waited), timeout_ns - waited)};
        nanosleep(&rest, nullptr);
        if (is_gone(uffd)) return true;
    }
    return false;
}

void write_protect(int uffd, pid_t os_pid, std::span<const PageRun> ranges) {
    on_what_is_mapped(uffd, os_pid, ranges, "write-protecting through a userfaultfd", fence_range,
                      fence_range);
}

void lift_protection(int uffd, pid_t os_pid, std::span<const PageRun> ranges) {
    on_what_is_mapped(uffd, os_pid, ranges, "lifting a write protection through a userfaultfd", open_range,
                      open_mapping);
}

void guard_missing(int uffd, pid_t os_pid, std::span<const PageRun> ranges) {
    on_what_is_mapped(uffd, os_pid, ranges, "guarding pages through a userfaultfd", guard_range, guard_range);
}

}  // namespace bequest
