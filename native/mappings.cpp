#include "mappings.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "kernel.hpp"

namespace bequest {

namespace {

constexpr size_t kLineBytes = 4096 + 256;  // a path and what stands before it

// Calls `look(start, end, line)` for each mapping until it says stop.
template <class Look>
void each_mapping(pid_t os_pid, const Look& look) {
    char path[64], line[kLineBytes];
    std::snprintf(path, sizeof path, "/proc/%d/maps", os_pid);
    std::FILE* maps = std::fopen(path, "re");
    if (!maps) fail("looking what a process has mapped", errno);
    bool on = true;
    while (on && std::fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (std::sscanf(line, "%lx-%lx ", &start, &end) == 2) on = look(start, end, line);
    }
    std::fclose(maps);
}

}  // namespace

std::vector<PageRun> mappings_within(pid_t os_pid, const PageRun& range) {
    const uint64_t limit = range.address + range.nbytes;
    std::vector<PageRun> found;
    each_mapping(os_pid, [&](uint64_t start, uint64_t end, const char*) {
        start = std::max(start, range.address);
        end = std::min(end, limit);
        if (start < end) found.push_back({start, end - start});
        return end < limit;
    });
    return found;
}

std::optional<PageRun> vdso_of(pid_t os_pid) {
    std::optional<PageRun> found;
    each_mapping(os_pid, [&](uint64_t start, uint64_t end, const char* line) {
        if (std::strstr(line, "[vdso]")) found = {start, end - start};
        return !found;
    });
    return found;
}

}  // namespace bequest
