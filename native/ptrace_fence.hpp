// The second way to keep another process from its memory: stop one of its threads and have it call mprotect.
//
// Theory of operation. Protection belongs to the address space, so one thread that can be stopped is enough.
// It is seized, interrupted, its registers are kept, and it is made to run one system call instruction (of
// the vdso) as mprotect(range, PROT_NONE) for each range. Then it is stopped once more, gets its registers
// and signal mask back and is let go: a system call that was interrupted starts again by itself, a stopped
// process stays stopped. The return of mprotect is the commit point: no processor has an old translation left
// then. A store afterwards is a SIGSEGV, a system call's an EFAULT. Unlike the protection through a
// userfaultfd, this one is lifted by whoever calls mprotect again; the library opens only what the table says
// is its own.
//
// A tracer is a thread: all this happens in one of its own, whose end lets go of whatever is still seized.
#pragma once

#include <sys/types.h>

#include <span>

#include "fence.hpp"

namespace bequest {

// Throws std::system_error: EPERM where tracing is not allowed, ETIMEDOUT if no thread could be stopped in
// time, ENOSYS on processors for which it is not written, ESRCH if the process is gone (its pidfd says so).
void ptrace_close(pid_t os_pid, int pidfd, std::span<const PageRun> ranges, int64_t timeout_ns);

}  // namespace bequest
