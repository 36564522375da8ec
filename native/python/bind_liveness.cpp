// bequest._core: fences, lifelines, and the watch on them.
//
// What may take long (an ioctl on a busy address space, a stop of another process) runs without the GIL.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>
#include <sys/prctl.h>

#include <cerrno>
#include <system_error>

#include <memory>
#include <optional>

#include "../fence.hpp"
#include "../liveness.hpp"
#include "../promptness.hpp"
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

// What is done through a userfaultfd.
template <void (*act)(int uffd, pid_t os_pid, std::span<const PageRun> ranges)>
void bind_on_ranges(nb::module_& m, const char* name) {
    using namespace nb::literals;
    m.def(
        name,
        [](int fd, int os_pid, const Ranges& ranges) {
            const auto wanted = checked(ranges);
            nb::gil_scoped_release release;
            act(fd, os_pid, wanted);
        },
        "fd"_a, "os_pid"_a, "ranges"_a);
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
    bind_on_ranges<&write_protect>(m, "write_protect");
    bind_on_ranges<&lift_protection>(m, "lift_protection");
    bind_on_ranges<&guard_missing>(m, "guard_missing");
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

uint32_t checked(uint32_t id) {
    if (id == 0 || id > kMaxProcessId) raise_error("ValueError", "%u is no process id", id);
    return id;
}

// Own and others' lifelines keep the tables mapped that they lie in.
struct OwnLifeline {
    nb::object table;
    std::unique_ptr<LifelineKeeper> keeper;
};

class OthersLifeline {
public:
    void keep(const nb::object& table, uint32_t id, uint64_t incarnation) {
        vigil_.keep(nb::cast<TableFile*>(table)->table().slot(checked(id)), id, incarnation);
        table_ = table;  // the one before is let go only now
    }
    nb::object wait() {
        const std::optional<Vigil::End> end = without_gil([&] { return vigil_.wait(); });
        if (!end) return nb::none();
        return nb::make_tuple(end->id, end->incarnation, end->event == LineEvent::kDied);
    }
    void nudge() { vigil_.nudge(); }

private:
    nb::object table_;
    Vigil vigil_;
};

void bind_lifelines(nb::module_& m) {
    using namespace nb::literals;
    m.def("ask_for_short_slices", &ask_for_short_slices);
    m.attr("BEAT_INTERVAL") = kBeatInterval_ns / 1e9;
    m.attr("LOOK_INTERVAL") = kLookInterval_ns / 1e9;
    nb::class_<OwnLifeline>(m, "Lifeline")
        .def(
            "__init__",
            [](OwnLifeline* self, const nb::object& table, uint32_t id) {
                const Table its_table = nb::cast<TableFile*>(table)->table();
                new (self) OwnLifeline{table, std::make_unique<LifelineKeeper>(its_table, checked(id))};
            },
            "table"_a, "id"_a)
        .def("leave", [](OwnLifeline& self) { self.keeper->leave(); })
        .def(
            "expect_by",
            [](OwnLifeline& self, double when) { self.keeper->expect_by(static_cast<int64_t>(when * 1e9)); },
            "when"_a);
    nb::class_<OthersLifeline>(m, "Vigil")
        .def(nb::init<>())
        .def("keep", &OthersLifeline::keep, "table"_a, "id"_a, "incarnation"_a)
        .def("wait", &OthersLifeline::wait)
        .def("nudge", &OthersLifeline::nudge);
}

}  // namespace

void bind_liveness(nb::module_& m) {
    bind_fences(m);
    bind_lifelines(m);
}

}  // namespace bequest
