// What a process has mapped, as /proc tells: only for detours, for it costs a line of text for each mapping.
#pragma once

#include <sys/types.h>

#include <optional>
#include <vector>

#include "fence.hpp"

namespace bequest {

// The parts of the range that something is mapped at, in order. Throws std::system_error if one may not look.
std::vector<PageRun> mappings_within(pid_t os_pid, const PageRun& range);

// The kernel's own code page in that process, which holds system calls.
std::optional<PageRun> vdso_of(pid_t os_pid);

}  // namespace bequest
