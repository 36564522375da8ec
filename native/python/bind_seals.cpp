// bequest._core.SealLedger and Sweeper: checksums of sealed pages, for the memory element's server. In bytes.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "../page_sums.hpp"
#include "../sweeper.hpp"
#include "python.hpp"

namespace bequest {

namespace {

uint64_t pages(uint64_t bytes) { return bytes / kPageBytes; }

nb::list runs_of(const std::vector<SealedRun>& found) {
    nb::list runs;
    for (const SealedRun& run : found)
        runs.append(nb::make_tuple(run.first * kPageBytes, run.count * kPageBytes, run.number));
    return runs;
}

nb::tuple described(const Checked& checked) {
    return nb::make_tuple(checked.verified * kPageBytes, checked.unknown * kPageBytes,
                          runs_of(checked.different));
}

nb::tuple described(const Swept& swept) {
    return nb::make_tuple(swept.next * kPageBytes, swept.summed * kPageBytes, swept.checked * kPageBytes,
                          runs_of(swept.different));
}

void bind_ledger(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<SealLedger>(m, "SealLedger", "The checksums of one slab's sealed pages, in a file.")
        .def(nb::init<int, int, uint64_t>(), "slab"_a, "file"_a, "slab_bytes"_a)
        .def_static("make_file", &SealLedger::make_file, "slab_bytes"_a)
        .def(
            "mark",
            [](SealLedger& ledger, uint64_t offset, uint64_t nbytes) {
                const nb::gil_scoped_release released;
                return ledger.mark(pages(offset), pages(nbytes));
            },
            "offset"_a, "nbytes"_a)
        .def(
            "check",
            [](SealLedger& ledger, uint64_t offset, uint64_t nbytes, uint32_t number) {
                Checked checked;
                {
                    const nb::gil_scoped_release released;
                    checked = ledger.check(pages(offset), pages(nbytes), number);
                }
                return described(checked);
            },
            "offset"_a, "nbytes"_a, "number"_a)
        .def(
            "sweep",
            [](SealLedger& ledger, uint64_t offset, uint64_t end, uint64_t bytes_max, bool only_unsummed) {
                Swept swept;
                {
                    const nb::gil_scoped_release released;
                    swept = ledger.sweep(pages(offset), pages(end), pages(bytes_max), only_unsummed);
                }
                return described(swept);
            },
            "offset"_a, "end"_a, "bytes_max"_a, "only_unsummed"_a)
        .def(
            "forget",
            [](SealLedger& ledger, uint64_t offset, uint64_t nbytes, uint32_t number) {
                ledger.forget(pages(offset), pages(nbytes), number);
            },
            "offset"_a, "nbytes"_a, "number"_a = 0)
        .def("sealed_bytes", [](SealLedger& ledger) { return ledger.count_sealed() * kPageBytes; })
        .def("stop", &SealLedger::stop);
}

}  // namespace

void bind_seals(nb::module_& m) {
    using namespace nb::literals;
    bind_ledger(m);
    nb::class_<Sweeper>(m, "Sweeper", "A thread that sums and checks while nothing else wants the processor.")
        .def(nb::init<>())
        .def("fileno", &Sweeper::fileno)
        .def(
            "start",
            [](Sweeper& sweeper, std::shared_ptr<SealLedger> ledger, uint64_t offset, uint64_t end,
               uint64_t bytes_max, bool only_unsummed) {
                sweeper.start(std::move(ledger), pages(offset), pages(end), pages(bytes_max), only_unsummed);
            },
            "ledger"_a, "offset"_a, "end"_a, "bytes_max"_a, "only_unsummed"_a)
        .def("collect", [](Sweeper& sweeper) -> nb::object {
            const auto swept = sweeper.collect();
            return swept ? nb::object(described(*swept)) : nb::none();
        });
    m.def(
        "sum_pages",
        [](const nb::object& buffer) {
            Py_buffer view;
            if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
            std::vector<uint32_t> sums(pages(static_cast<uint64_t>(view.len)));
            sum_pages(view.buf, sums.size(), sums.data());
            PyBuffer_Release(&view);
            return sums;
        },
        "pages"_a, "The CRC-32C of each whole page.");
}

}  // namespace bequest
