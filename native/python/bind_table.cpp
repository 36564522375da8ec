// bequest._core.Table: the V2P table as the Rack MMU's daemon and the command line see it.
#include <fcntl.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <map>

#include "../kernel.hpp"
#include "../liveness.hpp"
#include "python.hpp"

namespace bequest {

namespace {
[[noreturn]] void close_and_fail(const char* what, int fd) {
    const int error = errno;
    if (fd >= 0) ::close(fd);
    fail(what, error);
}
void* map_table(int fd) {
    void* base = mmap(nullptr, kTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) close_and_fail("mapping the V2P table", fd);
    return base;
}
Addressee addressee(uint32_t to, uint32_t incarnation, uint32_t sender, const nb::bytes& tag) {
    if (tag.size() > kTagBytesMax) raise_error("ValueError", "a tag has at most %u bytes", kTagBytesMax);
    return {to, incarnation, sender, {tag.c_str(), tag.size()}};
}

using TableClass = nb::class_<TableFile>;

// Who is in the table.
void bind_lives(TableClass& table) {
    using namespace nb::literals;
    table.def_static("create", &TableFile::create, "group_id"_a, nb::rv_policy::take_ownership)
        .def_static("open", &TableFile::open, "fd"_a, nb::rv_policy::take_ownership)
        .def("fileno", &TableFile::fd)
        .def_prop_ro("group_id", [](TableFile& t) { return t.table().header().group_id; })
        .def(
            "admit",
            [](TableFile& t, uint32_t id, uint32_t incarnation, uint32_t os_pid, const std::string& name) {
                if (id == 0 || id >= kIdCount || t.table().life(id) != Life::kEmpty)
                    raise_error("ValueError", "id %u is not vacant in this table", id);
                t.table().admit(id, incarnation, os_pid, name.c_str());
            },
            "id"_a, "incarnation"_a, "os_pid"_a, "name"_a)
        .def("recover", [](TableFile& t) { return t.steward().recover(); })
        .def(
            "mark_dead", [](TableFile& t, uint32_t id) { t.table().mark_dead(id); }, "id"_a)
        .def(
            "vacate", [](TableFile& t, uint32_t id) { t.table().vacate(id); }, "id"_a)
        .def(
            "life",
            [](TableFile& t, uint32_t id) {
                const Slot& slot = t.table().slot(id);
                const bool empty = t.table().life(id) == Life::kEmpty;
                return nb::make_tuple(
                    static_cast<uint32_t>(t.table().life(id)), t.table().incarnation(id), slot.os_pid,
                    empty ? std::string() : std::string(slot.name, strnlen(slot.name, kNameBytesMax)));
            },
            "id"_a);
}

// Slabs come, go, move away and come home.
void bind_slabs(TableClass& table) {
    using namespace nb::literals;
    table
        .def(
            "add_slab",
            [](TableFile& t, uint32_t slab, uint64_t address, uint32_t pages, uint32_t element, bool huge,
               uint32_t home) { return t.steward().add_slab({slab, address, pages, element, huge, home}); },
            "slab"_a, "address"_a, "pages"_a, "element"_a, "huge"_a, "home"_a)
        .def(
            "add_slab_granted",
            [](TableFile& t, uint32_t slab, uint64_t address, uint32_t pages, uint32_t element, bool huge,
               uint64_t nbytes, uint32_t to, uint32_t incarnation, uint32_t sender, const nb::bytes& tag,
               uint32_t seal) {
                return t.steward().add_slab_granted({slab, address, pages, element, huge, home_of(address)},
                                                    nbytes, addressee(to, incarnation, sender, tag), seal);
            },
            "slab"_a, "address"_a, "pages"_a, "element"_a, "huge"_a, "nbytes"_a, "to"_a, "incarnation"_a,
            "sender"_a, "tag"_a, "seal"_a = 0)
        .def(
            "take_slab", [](TableFile& t, uint32_t slab) { return t.steward().take_slab(slab); }, "slab"_a)
        .def("idle_slabs", [](TableFile& t) { return t.steward().idle_slabs(); })
        .def(
            "slab_idle",
            [](TableFile& t, uint32_t slab) {
                for (const Extent& e : t.steward().extents_of(slab))
                    if (e.word.state() != State::kFree && !e.word.is(State::kOwned, kMmuId)) return false;
                return true;
            },
            "slab"_a)
        .def(
            "withdraw",
            [](TableFile& t, uint32_t descriptor, uint64_t word) {
                return t.steward().withdraw({descriptor, {word}});
            },
            "descriptor"_a, "word"_a)
        .def(
            "fail_slab",
            [](TableFile& t, uint32_t slab) {
                if (!t.table().has_slab(slab)) raise_error("ValueError", "there is no slab %u", slab);
                t.table().slab_record(slab).has_failed.store(1);
            },
            "slab"_a)
        .def(
            "restore",
            [](TableFile& t, uint32_t descriptor, uint64_t word) {
                const auto restored = t.steward().restore({descriptor, {word}});
                if (!restored) raise_error("ValueError", "extent %u was not withdrawn", descriptor);
                return restored->bits;
            },
            "descriptor"_a, "word"_a)
        .def(
            "deliver_into",
            [](TableFile& t, uint64_t address, uint64_t pages, uint64_t nbytes, uint32_t to,
               uint32_t incarnation, uint32_t sender, const nb::bytes& tag) {
                return t.steward().deliver_into(address, pages, nbytes,
                                                addressee(to, incarnation, sender, tag));
            },
            "address"_a, "pages"_a, "nbytes"_a, "to"_a, "incarnation"_a, "sender"_a, "tag"_a)
        .def(
            "free_away",
            [](TableFile& t, uint64_t address, uint64_t pages) {
                return t.steward().free_away(address, pages);
            },
            "address"_a, "pages"_a);
}

// Signs of life: who wants them, and how many there were.
void bind_signs(TableClass& table) {
    using namespace nb::literals;
    table
        .def(
            "watch",
            [](TableFile& t, uint32_t id, uint32_t watchers) { set_watchers(t.table().slot(id), watchers); },
            "id"_a, "watchers"_a)
        .def(
            "watchers", [](TableFile& t, uint32_t id) { return t.table().slot(id).watched.load(); }, "id"_a)
        .def(
            "beats", [](TableFile& t, uint32_t id) { return t.table().slot(id).beats.load() & ~kStuck; },
            "id"_a)
        .def(
            "is_stuck",
            [](TableFile& t, uint32_t id) { return (t.table().slot(id).beats.load() & kStuck) != 0; }, "id"_a)
        .def("is_broken", [](TableFile& t, uint32_t id) { return is_broken(t.table().slot(id)); }, "id"_a);
}

// What becomes of the dead's steps and memory.
void bind_deaths(TableClass& table) {
    using namespace nb::literals;
    table.def(
             "settle", [](TableFile& t, uint32_t id) { return t.steward().settle(id); }, "id"_a)
        .def(
            "release", [](TableFile& t, uint32_t id) { return t.steward().release(id); }, "id"_a)
        .def(
            "holdings",
            [](TableFile& t, uint32_t id) {
                const Holdings h = t.steward().holdings(id);
                return nb::make_tuple(h.extents, h.pages, h.free_pages);
            },
            "id"_a);
}

nb::list as_tuples(const std::vector<PlacedExtent>& extents) {
    nb::list tuples;
    for (const auto& [address, extent] : extents)
        tuples.append(nb::make_tuple(extent.descriptor, extent.word.bits, address, extent.word.pages()));
    return tuples;
}

// Memory that is taken from one process for another.
void bind_thefts(TableClass& table) {
    using namespace nb::literals;
    using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;
    table
        .def(
            "stealable",
            [](TableFile& t, uint32_t victim, const std::optional<Ranges>& only) {
                std::vector<AddressRange> ranges;
                if (only)
                    for (const auto& [address, nbytes] : *only) ranges.push_back({address, nbytes});
                return as_tuples(t.steward().stealable(victim, only ? &ranges : nullptr));
            },
            "victim"_a, "only"_a = nb::none())
        .def(
            "owned",
            [](TableFile& t, uint32_t id, const Ranges& only) {
                std::vector<AddressRange> ranges;
                for (const auto& [address, nbytes] : only) ranges.push_back({address, nbytes});
                return as_tuples(t.steward().owned(id, ranges));
            },
            "id"_a, "only"_a)
        .def(
            "steal",
            [](TableFile& t, const std::vector<std::pair<uint32_t, uint64_t>>& extents, uint32_t victim,
               uint32_t thief) {
                std::vector<Extent> wanted;
                for (const auto& [descriptor, word] : extents) wanted.push_back({descriptor, {word}});
                return as_tuples(t.steward().steal(wanted, victim, thief));
            },
            "extents"_a, "victim"_a, "thief"_a)
        .def(
            "name_heir",
            [](TableFile& t, uint32_t victim, uint32_t thief) {
                return t.steward().name_heir(victim, thief);
            },
            "victim"_a, "thief"_a)
        .def(
            "have_mended", [](TableFile& t, uint32_t id) { t.steward().have_mended(id); }, "id"_a)
        .def(
            "is_opening", [](TableFile& t, uint32_t id) { return t.steward().is_opening(id); }, "id"_a)
        .def(
            "revocations", [](TableFile& t, uint32_t id) { return t.table().slot(id).revocations.load(); },
            "id"_a);
}

nb::list usage(TableFile& t) {
    std::map<uint32_t, Holdings> by_id;
    for (uint32_t i = 0; i < t.table().extent_limit(); i++) {
        const OwnerWord word = t.table().owner(i);
        if (word.state() == State::kEmpty) continue;
        Holdings& h = by_id[word.id()];
        h.extents++;
        (word.state() == State::kFree ? h.free_pages : h.pages) += word.pages();
    }
    nb::list usage;
    for (const auto& [id, h] : by_id) usage.append(nb::make_tuple(id, h.extents, h.pages, h.free_pages));
    return usage;
}

nb::object find_extent(TableFile& t, uint64_t address, uint32_t hint) {
    const auto e = t.steward().extent_at(address, hint);
    if (!e) return nb::none();
    const Descriptor& d = t.table().extent(e->descriptor);
    return nb::make_tuple(e->descriptor, uint64_t{d.address}, e->word.pages(),
                          static_cast<uint32_t>(e->word.state()), e->word.id(), uint64_t{d.birth});
}

// What may take long is asked for in a thread of its own, and does not keep others from the interpreter.
nb::list summaries(TableFile& t, const std::vector<uint32_t>& slabs, size_t runs_max) {
    const std::vector<SlabSummary> found =
        without_gil([&] { return t.steward().summaries(slabs, runs_max); });
    nb::list tuples;
    for (const SlabSummary& s : found) {
        nb::list owners, runs;
        for (const auto& [id, pages] : s.owners) owners.append(nb::make_tuple(id, pages));
        for (const auto& run : s.runs)
            runs.append(nb::make_tuple(run.pages, static_cast<uint32_t>(run.state), run.id));
        tuples.append(
            nb::make_tuple(s.slab, s.extents, s.free_pages, s.free_runs, s.largest_free_run, owners, runs));
    }
    return tuples;
}

// What the table says, for reports and audits.
void bind_reports(TableClass& table) {
    using namespace nb::literals;
    table.def("usage", &usage)
        .def("slabs",
             [](TableFile& t) {
                 nb::list slabs;
                 for (uint32_t i = 0; i < t.table().slab_limit(); i++) {
                     const SlabRecord& r = t.table().slab_record(i);
                     const uint32_t id = r.id_plus_one.load();
                     if (id == 0) continue;
                     slabs.append(nb::make_tuple(id - 1, uint64_t{r.address}, uint32_t{r.pages},
                                                 uint32_t{r.element}, r.huge != 0, uint32_t{r.home}));
                 }
                 return slabs;
             })
        .def(
            "slab_element",
            [](TableFile& t, uint32_t slab) {
                if (!t.table().has_slab(slab)) raise_error("ValueError", "there is no slab %u", slab);
                return uint32_t{t.table().slab_record(slab).element};
            },
            "slab"_a)
        .def(
            "slab_extents",
            [](TableFile& t, uint32_t slab) {
                nb::list extents;
                for (const Extent& e : t.steward().extents_of(slab))
                    extents.append(nb::make_tuple(uint64_t{t.table().extent(e.descriptor).address},
                                                  e.word.pages(), static_cast<uint32_t>(e.word.state()),
                                                  e.word.id(), e.word.epoch()));
                return extents;
            },
            "slab"_a)
        .def("summaries", &summaries, "slabs"_a, "runs"_a)
        .def("find_extent", &find_extent, "address"_a, "hint"_a)
        .def(
            "descriptor",
            [](TableFile& t, uint32_t index) {
                if (index >= kMaxExtents) raise_error("ValueError", "there is no descriptor %u", index);
                const Descriptor& d = t.table().extent(index);
                const OwnerWord word = t.table().owner(index);
                return nb::make_tuple(uint64_t{d.address}, word.pages(), t.table().nbytes({index, word}),
                                      uint32_t{d.slab}, static_cast<uint32_t>(word.state()), word.id(),
                                      word.epoch());
            },
            "index"_a)
        .def(
            "inbox_depth", [](TableFile& t, uint32_t id) { return Inbox(t.table(), id).depth(); }, "id"_a)
        .def(
            "counters",
            [](TableFile& t, uint32_t id) {
                const Slot& s = t.table().slot(id);
                nb::dict counters;
                counters["grants"] = s.grants.load();
                counters["granted_bytes"] = s.granted_pages.load() * kPageBytes;
                counters["accepts"] = s.accepts.load();
                counters["allocs"] = s.allocs.load();
                counters["frees"] = s.frees.load();
                counters["reads"] = s.reads.load();
                counters["read_bytes"] = s.read_pages.load() * kPageBytes;
                counters["steals"] = s.steals.load();
                counters["resumes"] = s.resumes.load();
                return counters;
            },
            "id"_a)
        .def("audit", [](TableFile& t) { return without_gil([&] { return t.steward().audit(); }); });
}

// What is sealed, under which number.
void bind_seals_of(TableClass& table) {
    using namespace nb::literals;
    table
        .def(
            "sealed_in",
            [](TableFile& t, uint32_t slab, uint32_t number) {
                nb::list runs;
                for (const auto& [address, extent] : t.steward().sealed_in(slab, number))
                    runs.append(nb::make_tuple(address, extent.word.pages() * kPageBytes));
                return runs;
            },
            "slab"_a, "number"_a)
        .def(
            "read_in",
            [](TableFile& t, uint32_t slab) {
                nb::list read;
                for (const auto& [placed, reader] : t.steward().read_in(slab))
                    read.append(nb::make_tuple(placed.address, placed.extent.word.pages(), reader));
                return read;
            },
            "slab"_a)
        .def(
            "seal", [](TableFile& t, uint32_t index) { return t.table().seal(index % kMaxExtents); },
            "index"_a);
}

}  // namespace

TableFile* TableFile::create(uint32_t group_id) {
    const int fd = memfd_create("bequest-v2p", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) fail("creating the V2P table", errno);
    if (ftruncate(fd, static_cast<off_t>(kTableBytes)) != 0) close_and_fail("sizing the V2P table", fd);
    // Nobody who has it may pull it away under the others.
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        close_and_fail("sealing the V2P table", fd);
    auto* file = new TableFile(fd, map_table(fd));
    file->table().format(group_id);
    return file;
}

TableFile* TableFile::open(int fd) {
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0) fail("duplicating the V2P table's descriptor", errno);
    const off_t size = lseek(copy, 0, SEEK_END);
    void* base = size == static_cast<off_t>(kTableBytes) ? map_table(copy) : nullptr;
    auto* file = base ? new TableFile(copy, base) : nullptr;
    if (file && file->table().is_formatted()) return file;
    delete file;
    if (!file) ::close(copy);
    raise_error("VersionMismatch",
                "this is no V2P table of version %u: the rack runs another version of bequest",
                kTableVersion);
}

TableFile::~TableFile() {
    munmap(base_, kTableBytes);
    ::close(fd_);
}

void bind_table(nb::module_& m) {
    TableClass table(m, "Table", "One group's V2P table, in shared memory.");
    bind_lives(table);
    bind_slabs(table);
    bind_signs(table);
    bind_deaths(table);
    bind_thefts(table);
    bind_reports(table);
    bind_seals_of(table);
}

}  // namespace bequest
