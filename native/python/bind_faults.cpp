// Faults become Python exceptions (native/fault_barrier.hpp).
//
// Theory of operation. The handler calls `tell` on the thread that faulted. That thread was in C code that
// had borrowed a region's buffer, with the GIL (an index into a memoryview) or without (a NumPy loop, zlib).
// In either case it was executing one load or store, so none of the interpreter's locks is in its hands:
// `tell` takes the GIL if it must, as that C code would at its end, and leaves word for the interpreter. The
// exception's class is called without arguments when it rises, in the same thread, and asks here for the
// particulars.
//
// Word is left in two ways, for the interpreter looks for an asynchronous exception only at calls, loops and
// the beginnings of functions, and the instruction that faulted may be none of these: `view[0]` at the end of
// a try block would raise behind it. So a tripwire is set besides: a trace function that raises before the
// next instruction, or in place of whatever the C code raises over what it has read. Whichever comes first
// clears the other away. A thread that Python does not know leaves its word to the main thread.
#include <nanobind/stl/string.h>

#include <atomic>
#include <system_error>
#include <thread>

#include "herald.hpp"
#include "seats.hpp"
#include "tripwire.hpp"

namespace bequest {

namespace {

PyObject* revoked_type = nullptr;  // the classes in bequest.errors
PyObject* failure_type = nullptr;

bool is_revoked(const Fault& fault) {
    bool revoked = fault.kind == FaultKind::kFenced;
    seats().for_each([&](const std::shared_ptr<Member>& member) {
        const Holding* holding = member->holding_at(fault.address);
        if (!holding) return;
        if (const Loss* loss = holding->loss_at(fault.address)) {
            revoked = loss->stolen;
        } else if (const uint64_t at = fault.address - holding->address(); !holding->stands({at, at + 1})) {
            revoked = true;
        }
    });
    return revoked;
}

PyThreadState* running_thread() {
#if PY_VERSION_HEX >= 0x030D0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

// --- word is left --------------------------------------------------------------------------------

// Under the GIL, for a thread that is in the handler: so no garbage collection, which would run anybody's
// code.
void leave_word(PyThreadState* thread, const Fault& fault) {
    const int collects = PyGC_Disable();
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyThreadState_SetAsyncExc(thread->thread_id, is_revoked(fault) ? revoked_type : failure_type);
    arm_tripwire(thread);
    PyErr_Restore(type, value, trace);
    if (collects) PyGC_Enable();
}

void run_errand(const Errand& errand, bool waits) {
    if (waits) return leave_word(errand.asker, errand.fault);
    PyThreadState_SetAsyncExc(errand.thread_id, is_revoked(errand.fault) ? revoked_type : failure_type);
}

// What threads that Python does not know have met. Several may be lost to one exception.
Fault strays[16];
std::atomic<uint32_t> stray_count{0};

int raise_stray(void* number) {
    const Fault fault = strays[reinterpret_cast<uintptr_t>(number)];
    adopt_fault(fault);
    PyErr_SetNone(is_revoked(fault) ? revoked_type : failure_type);
    return -1;
}

void leave_word_to_main_thread(const Fault& fault) {
    const uintptr_t number = stray_count.fetch_add(1) % std::size(strays);
    strays[number] = fault;
    Py_AddPendingCall(raise_stray, reinterpret_cast<void*>(number));
}

void tell(const Fault& fault) {
    if (!Py_IsInitialized() || is_finalizing()) return;
    PyThreadState* thread = PyGILState_GetThisThreadState();
    if (!thread) return leave_word_to_main_thread(fault);
    if (running_thread() == thread) return leave_word(thread, fault);
    if (!send_herald({thread, thread->thread_id, fault}, run_errand)) leave_word_to_main_thread(fault);
}

// --- particulars ---------------------------------------------------------------------------------

std::string describe(const Holding& holding, const Loss& loss, uint64_t touched) {
    char text[320];
    const int length = std::snprintf(text, sizeof text, "the memory of this region (%zu bytes at %#zx) %s",
                                     static_cast<size_t>(holding.nbytes()),
                                     static_cast<size_t>(holding.address()), loss.cause.c_str());
    if (touched != 0 && length > 0 && static_cast<size_t>(length) < sizeof text)
        std::snprintf(
            text + length, sizeof text - static_cast<size_t>(length),
            "; what was read there since means nothing, and what was written is gone (touched: %#zx)",
            static_cast<size_t>(touched));
    return text;
}

nb::object particulars(const Fault& fault) {
    nb::object found = nb::none();
    const uint64_t page = fault.address / kPageBytes * kPageBytes;
    seats().for_each([&](const std::shared_ptr<Member>& member) {
        Holding* holding = member->holding_at(fault.address);
        if (!holding) return;
        if (!holding->loss_at(fault.address)) member->account_for(page, page + kPageBytes, fault.kind);
        const Loss* loss = holding->loss_at(fault.address);
        if (loss)
            found = nb::make_tuple(describe(*holding, *loss, fault.address), fault.address,
                                   region_of(*holding), loss->cause, holding->nbytes());
    });
    if (!found.is_none()) return found;
    char text[160];
    std::snprintf(text, sizeof text, "rack memory at %#zx is gone, which no region of this process is",
                  static_cast<size_t>(fault.address));
    return nb::make_tuple(text, fault.address, nb::none(),
                          fault.kind == FaultKind::kFenced ? "was fenced off" : "has failed", 0);
}

PyObject* hardware_reporter = nullptr;

void report_hardware_errors() {
    HardwareError error;
    while (hardware_reporter && take_hardware_error(error)) {
        try {
            nb::borrow(hardware_reporter)(error.address, error.nbytes);
        } catch (nb::python_error& trouble) {
            trouble.discard_as_unraisable("reporting a hardware error");
        }
    }
}

std::atomic<bool> is_reporting{false};

void report_under_the_gil() {
    const PyGILState_STATE gil = PyGILState_Ensure();
    report_hardware_errors();
    PyGILState_Release(gil);
    is_reporting.store(false);
}

// The thread that asks has beats to keep up, and the GIL may be long in coming. If there can be no thread, it
// asks again.
void report_in_a_thread() {
    if (!Py_IsInitialized() || is_finalizing() || is_reporting.exchange(true)) return;
    try {
        std::thread(report_under_the_gil).detach();
    } catch (const std::system_error&) {
        is_reporting.store(false);
    }
}

nb::object take_fault_of_this_thread() {
    disarm_tripwire();
    Fault fault;
    const bool found = take_fault(fault);
    take_stock();
    report_hardware_errors();
    return found ? particulars(fault) : nb::none();
}

}  // namespace

void take_stock() {
    std::vector<std::shared_ptr<Member>> members;
    seats().for_each([&](const std::shared_ptr<Member>& member) { members.push_back(member); });
    if (members.empty()) return;
    bool robbed = false;
    members.front()->attachment.space().retire_scratch();
    for (const auto& member : members) robbed |= member->was_robbed();
    if (robbed) reconcile(members);
    stand_first_in_line();
}

void raise_lost(const Holding& holding, const Loss& loss) {
    using namespace nb::literals;
    nb::object type = nb::borrow(loss.stolen ? revoked_type : failure_type);
    const uint64_t address = holding.address() + loss.span.start;
    nb::object error =
        type(describe(holding, loss, 0), "address"_a = address, "region"_a = region_of(holding),
             "cause"_a = loss.cause, "nbytes"_a = holding.nbytes());
    PyErr_SetObject(type.ptr(), error.ptr());
    throw nb::python_error();
}

void catch_faults() {
    if (!revoked_type) {
        nb::object errors = nb::module_::import_("bequest.errors");
        failure_type = nb::object(errors.attr("MemoryFailure")).release().ptr();
        revoked_type = nb::object(errors.attr("MemoryRevoked")).release().ptr();
        prepare_tripwires(revoked_type, failure_type);
    }
    prepare_herald();
    tell_faults_to(tell);
    tell_hardware_errors_to(report_in_a_thread);
    stand_first_in_line();
}

void bind_faults(nb::module_& m) {
    m.def("take_fault", &take_fault_of_this_thread,
          "What the calling thread's last touch of lost memory was: (message, address, region, cause, "
          "nbytes).");
    m.def(
        "report_hardware_errors_to",
        [](const nb::object& reporter) {
            Py_XDECREF(hardware_reporter);
            hardware_reporter = nb::object(reporter).release().ptr();
        },
        nb::arg("reporter"), "Has it called with (address, bytes) of what the hardware has lost.");
    m.def("pass_raw_memory_signals", &pass_raw_signals, nb::arg("raw"));
}

}  // namespace bequest
