// Keeping another process from its memory, without its help: through the userfaultfd that it handed over.
//
// Theory of operation. A process opens a userfaultfd when it attaches and gives it to the agent of its
// compute element; nothing is registered, so it costs nothing. The ioctls of that descriptor act on the
// address space that opened it, whoever makes them. They answer and do three things:
//
//   is anybody left?   UFFDIO_WRITEPROTECT on a page that is not registered says ENOENT while the address
//                      space has a thread (also one of a vfork child that shares it), and ESRCH as soon as
//                      the last has left it: before the kernel begins to tear the mappings down, which for
//                      1 GiB takes tens of milliseconds, and which a pidfd waits for.
//   write_protect      Registered and write-protected, a store faults. The descriptor was opened with SIGBUS
//                      and for user mode only: the fault is a SIGBUS where user code stored, and EFAULT where
//                      a system call did; nobody ever waits. The protection belongs to the page tables: it
//                      holds for every thread, for pages not touched yet, and whatever mprotect says
//                      afterwards. When the ioctl returns, no processor has an old translation left: that is
//                      the commit point. Pages that were pinned earlier (O_DIRECT, RDMA) are beyond it: the
//                      device stores, not the process.
//   lift_protection    Takes that back, for memory that has turned out to be the process's own. What mprotect
//                      says stays as it is, and so do guards: a fenced range is guarded, too, for the kernel
//                      knows one registration of a range, and stays so. A slab has all its pages in the file.
//   guard_missing      Pages that are punched out of the file from now on are not filled with zeros, but
//                      SIGBUS.
//
// A fence lasts until it is lifted, the range is unmapped or mapped anew, or the last copy of
// the descriptor is closed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>

namespace bequest {

struct PageRun {
    uint64_t address, nbytes;
};

// Of this process's own address space. Throws std::system_error where the kernel or a sandbox refuses.
int open_fence();

// Whether a descriptor from somebody else is what open_fence makes. Asks nothing of the descriptor itself, so
// that garbage (a pipe, a file of a network file system) can do no harm.
bool is_fence(int fd);

// No thread is left that could ever store through that address space.
bool is_gone(int uffd);
// Looks again and again; also false when the time is up.
bool wait_until_gone(int uffd, int64_t timeout_ns);

// Of each range what is mapped; `os_pid` is whose address space it is, to look what that is. Throws
// std::system_error, with some ranges perhaps protected already.
void write_protect(int uffd, pid_t os_pid, std::span<const PageRun> ranges);
void lift_protection(int uffd, pid_t os_pid, std::span<const PageRun> ranges);  // of what was ever fenced
void guard_missing(int uffd, pid_t os_pid, std::span<const PageRun> ranges);

}  // namespace bequest
