// What the bindings share. Only files in this folder know Python; they translate and decide nothing.
#pragma once

#include <nanobind/nanobind.h>

#include "../holding.hpp"
#include "../recovery.hpp"

namespace nb = nanobind;

namespace bequest {

// Raises bequest.errors.<name>(message), or a builtin exception of that name.
[[noreturn]] void raise_error(const char* name, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
void translate_exceptions();

// A table mapped into this process, and its file.
class TableFile {
public:
    static TableFile* create(uint32_t group_id);
    static TableFile* open(int fd);  // keeps a duplicate
    ~TableFile();
    TableFile(const TableFile&) = delete;
    int fd() const { return fd_; }
    Steward& steward() { return steward_; }
    Table table() const { return steward_.table(); }

private:
    TableFile(int fd, void* base) : fd_(fd), base_(base), steward_(Table(base)) {}
    int fd_;
    void* base_;
    Steward steward_;
};

struct ProcessBase {
    nb::object table;  // keeps the mapping
    nb::object region_type;
    std::shared_ptr<Member> member;
    int64_t spin_ns;

    Member& usable() const;  // raises NotAttached
};

struct RegionBase {
    nb::object process;
    std::shared_ptr<Holding> holding;
    Span span;
    std::string tag;
    std::string sender;

    Holding& usable() const;                          // raises NotAttached
    void require_owned() const;                       // raises RegionMoved
    void require_memory(const char* verb) const;      // raises BadSize
    void require_unborrowed(const char* verb) const;  // raises BufferError
};

nb::object wrap_region(const nb::object& process, nb::handle region_type, RegionBase&& region);
std::shared_ptr<Holding> hold(const std::shared_ptr<Member>& member, const Extent& extent);

void bind_table(nb::module_& m);
void bind_process(nb::module_& m);
void bind_region(nb::module_& m);
void bind_liveness(nb::module_& m);

}  // namespace bequest
