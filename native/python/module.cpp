// The extension module bequest._core: constants, errors, and the calls of the memory element.
#include <cstdarg>
#include <cstdio>
#include <system_error>

#include "../slab_file.hpp"
#include "heap_handle.hpp"

namespace bequest {

void raise_error(const char* name, const char* format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    nb::object errors = nb::module_::import_("bequest.errors");
    nb::object type = nb::getattr(errors, name, nb::none());
    if (type.is_none()) type = nb::module_::import_("builtins").attr(name);
    PyErr_SetString(type.ptr(), message);
    throw nb::python_error();
}

namespace {

void set_error(const char* name, const std::exception& e) {
    nb::object type = nb::module_::import_("bequest.errors").attr(name);
    PyErr_SetString(type.ptr(), e.what());
}

void translate(const std::exception_ptr& pointer, void*) {
    try {
        std::rethrow_exception(pointer);
    } catch (const TooManyMappings& e) {
        nb::object type = nb::module_::import_("bequest.errors").attr("TooManyMappings");
        PyErr_SetString(type.ptr(), e.what());
    } catch (const NotGranular& e) {
        nb::object type = nb::module_::import_("bequest.errors").attr("BadSize");
        PyErr_SetString(type.ptr(), e.what());
    } catch (const WindowTaken& e) {
        nb::object type = nb::module_::import_("bequest.errors").attr("UnsupportedPlatform");
        PyErr_SetString(type.ptr(), e.what());
    } catch (const TooManyReadings& e) {
        set_error("RackMemoryError", e);
    } catch (const CorruptHeap& e) {
        set_error("CorruptHeap", e);
    } catch (const ForeignHeap& e) {
        set_error("ForeignHeap", e);
    } catch (const HeapFull& e) {
        set_error("HeapFull", e);
    } catch (const HeapMisuse& e) {
        set_error("HeapMisuse", e);
    } catch (const std::system_error& e) {
        nb::object arguments = nb::make_tuple(e.code().value(), e.what());
        PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
}

}  // namespace

void translate_exceptions() { nb::register_exception_translator(translate); }

void set_python_error(const std::exception_ptr& trouble) {
    try {
        translate(trouble, nullptr);
    } catch (nb::python_error& e) {
        e.restore();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& e) {
        PyErr_SetString(PyExc_RuntimeError, e.what());
    }
}

}  // namespace bequest

NB_MODULE(_core, m) {
    using namespace bequest;
    m.doc() = "The native core of Bequest: the V2P table, the rack window, and what is built on them.";
    nb::set_leak_warnings(false);  // regions alive at interpreter exit are reported by us, by name
    translate_exceptions();

    m.attr("PAGE_BYTES") = kPageBytes;
    m.attr("HUGE_PAGE_BYTES") = kHugePageBytes;
    m.attr("LARGE_REGION_BYTES") = kLargeRegionBytes;
    m.attr("WINDOW_BASE") = kWindowBase;
    m.attr("WINDOW_BITS") = kWindowBits;
    m.attr("PROCESS_SPACE_BITS") = kProcessSpaceBits;
    m.attr("MAX_PROCESS_ID") = kMaxProcessId;
    m.attr("FIRST_MAILBOX_ID") = kFirstMailboxId;
    m.attr("LAST_MAILBOX_ID") = kLastMailboxId;
    m.attr("MMU_ID") = kMmuId;
    m.attr("INBOX_CELLS") = kInboxCells;
    m.attr("TAG_BYTES_MAX") = kTagBytesMax;
    m.attr("NAME_BYTES_MAX") = kNameBytesMax;
    m.attr("MAX_EXTENTS") = kMaxExtents;
    m.attr("MAX_SLABS") = kMaxSlabs;
    m.attr("MAX_READINGS") = kMaxReadings;
    m.attr("DESCRIPTOR_BYTES") = sizeof(Descriptor);
    m.attr("SLAB_RECORD_BYTES") = sizeof(SlabRecord);
    m.attr("TABLE_VERSION") = kTableVersion;
    m.attr("ANY_ELEMENT") = kAnyElement;
    m.attr("STATE_EMPTY") = static_cast<uint32_t>(State::kEmpty);
    m.attr("STATE_EMBRYO") = static_cast<uint32_t>(State::kEmbryo);
    m.attr("STATE_FREE") = static_cast<uint32_t>(State::kFree);
    m.attr("STATE_OWNED") = static_cast<uint32_t>(State::kOwned);
    m.attr("STATE_IN_FLIGHT") = static_cast<uint32_t>(State::kInFlight);
    m.attr("STATE_FROZEN") = static_cast<uint32_t>(State::kFrozen);
    m.attr("STATE_THAWING") = static_cast<uint32_t>(State::kThawing);

    bind_table(m);
    bind_region(m);
    bind_readings(m);
    bind_process(m);
    bind_liveness(m);
    bind_seals(m);
    bind_faults(m);
    bind_heap(m);
    bind_transaction(m);
    bind_objects(m);
    bind_struct(m);
    bind_array(m);

    m.def("warm", &warm_slab, nb::arg("fd"), nb::arg("offset"), nb::arg("nbytes"), nb::arg("huge"),
          nb::call_guard<nb::gil_scoped_release>(),
          "Make a range of a slab's file present, on 2 MiB pages if `huge`; bytes that are huge now.");
    m.def("copy_pages", &copy_pages, nb::arg("source"), nb::arg("source_offset"), nb::arg("destination"),
          nb::arg("destination_offset"), nb::arg("nbytes"), nb::call_guard<nb::gil_scoped_release>(),
          "Copy pages between two slabs' files.");
}
