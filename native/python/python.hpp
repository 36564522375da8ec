// What the bindings share. Only files in this folder know Python; they translate and decide nothing.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <cxxabi.h>
#include <exception>
#include <utility>

#include "../holding.hpp"
#include "../recovery.hpp"

namespace nb = nanobind;

namespace bequest {

// Raises bequest.errors.<name>(message), or a builtin exception of that name.
[[noreturn]] void raise_error(const char* name, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
void translate_exceptions();
void set_python_error(const std::exception_ptr& trouble);  // as the translator would

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

// Memory may have been stolen from us, or have failed: finds out, if there is a sign of it.
void take_stock();
inline void look_around(const Member& member) {
    if (has_scratch() || member.was_robbed()) take_stock();
}

// That a Python object is the handle of a holding as a whole.
class Registration {
public:
    Registration() = default;
    Registration(Registration&& other) noexcept : holding_(std::exchange(other.holding_, nullptr)) {}
    ~Registration() {
        if (holding_) holding_->handle = nullptr;
    }
    void enter(Holding& holding, PyObject* handle) {
        if (holding.handle) return;
        holding_ = &holding;
        holding_->handle = handle;
    }

private:
    Holding* holding_ = nullptr;
};

inline bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
}

// Waits without the GIL. Python ends a thread that comes back to an interpreter which is ending, by unwinding
// its frames; C++ would take that for a mistake. So it stays here: the process is about to end.
template <class Wait>
auto without_gil(const Wait& wait) {
    PyThreadState* const thread = PyEval_SaveThread();
    const auto result = wait();
    try {
        PyEval_RestoreThread(thread);
    } catch (abi::__forced_unwind&) {
        for (;;) pause();
    }
    return result;
}

struct RegionBase {
    nb::object process;
    std::shared_ptr<Holding> holding;
    Span span;
    std::string tag;
    std::string sender;
    Registration registration = {};

    Holding& usable() const;                          // raises NotAttached
    void require_owned() const;                       // raises RegionMoved, MemoryRevoked, MemoryFailure
    void require_unstolen() const;                    // the same of what was lost in the middle of something
    void require_memory(const char* verb) const;      // raises BadSize
    void require_unborrowed(const char* verb) const;  // raises BufferError
    void require_unfrozen(const char* verb) const;    // raises RegionFrozen
    void require_whole_if_frozen(const char* verb) const;  // raises BadSize
};

nb::object wrap_region(nb::handle region_type, RegionBase&& region);
std::shared_ptr<Holding> hold(const std::shared_ptr<Member>& member, const Extent& extent);
std::shared_ptr<Holding> hold(const std::shared_ptr<Member>& member, const HeldReading& reading);
void look_who_stands_first();

nb::object region_of(const Holding& holding);  // its handle, or None
[[noreturn]] void raise_lost(const Holding& holding, const Loss& loss);
void catch_faults();

void bind_faults(nb::module_& m);
void bind_table(nb::module_& m);
void bind_process(nb::module_& m);
void bind_region(nb::module_& m);
void bind_liveness(nb::module_& m);
void bind_seals(nb::module_& m);
void bind_readings(nb::module_& m);

}  // namespace bequest
