// bequest._core: fences, lifelines, and the watch on them.
//
// What may take long (an ioctl on a busy address space, a stop of another process) runs without the GIL.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>
#include <sys/prctl.h>

#include <cerrno>
#include <system_error>

#include "../fence.hpp"
#include "../ptrace_fence.hpp"
#include "python.hpp"

namespace bequest {

namespace {

using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;

// Whole pages of the window, or a caller's mistake would reach other memory of the victim.
std::vector<PageRun> checked(const Ranges& ranges) {
    std::vector<PageRun> wanted;
    for (const auto& [address, nbytes] : ranges) {
        const bool fits = in_window(address) && nbytes > 0 && nbytes <= kWindowBase + kWindowBytes - address;
        if (!fits || address % kPageBytes || nbytes % kPageBytes)
            raise_error("ValueError", "%#lx with %lu bytes is no run of pages in the rack window", address,
                        nbytes);
        wanted.push_back({address, nbytes});
    }
    return wanted;
}

void bind_fences(nb::module_& m) {
    using namespace nb::literals;
    m.def("open_fence", &open_fence);
    m.def("is_fence", &is_fence, "fd"_a);
    m.def("is_gone", &is_gone, "fd"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "wait_until_gone",
        [](int fd, double seconds) { return wait_until_gone(fd, static_cast<int64_t>(seconds * 1e9)); },
        "fd"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "write_protect",
        [](int fd, int os_pid, const Ranges& ranges) {
            const auto wanted = checked(ranges);
            nb::gil_scoped_release release;
            write_protect(fd, os_pid, wanted);
        },
        "fd"_a, "os_pid"_a, "ranges"_a);
    m.def(
        "guard_missing",
        [](int fd, int os_pid, const Ranges& ranges) {
            const auto wanted = checked(ranges);
            nb::gil_scoped_release release;
            guard_missing(fd, os_pid, wanted);
        },
        "fd"_a, "os_pid"_a, "ranges"_a);
    m.def(
        "ptrace_close",
        [](int os_pid, int pidfd, const Ranges& ranges, double seconds) {
            const auto wanted = checked(ranges);
            nb::gil_scoped_release release;
            ptrace_close(os_pid, pidfd, wanted, static_cast<int64_t>(seconds * 1e9));
        },
        "os_pid"_a, "pidfd"_a, "ranges"_a, "seconds"_a);
    m.def(
        "allow_tracer",
        [](int os_pid) {
            // EINVAL: there is no Yama, and nothing to allow.
            return prctl(PR_SET_PTRACER, static_cast<unsigned long>(os_pid), 0, 0, 0) == 0 || errno == EINVAL;
        },
        "os_pid"_a);
}

}  // namespace

void bind_liveness(nb::module_& m) { bind_fences(m); }

}  // namespace bequest
