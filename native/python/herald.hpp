// A thread that takes the GIL for one that must not wait for it for ever.
//
// Theory of operation. Who faults without the GIL may hold a lock of the library that it is in, which another
// thread may be waiting for with the GIL in its hands: waiting for the GIL there would be a deadlock that the
// library does not have by itself. So the faulting thread asks the herald, and waits for a limited time only.
// The herald acts under the GIL; it is told whether the asker still waits, for only then may the asker's
// state be touched.
//
// It is started by the first fault that needs it, with all signals blocked, and lives as long as the process.
#pragma once

#include <Python.h>

#include "../fault_barrier.hpp"

namespace bequest {

struct Errand {
    PyThreadState* asker;
    unsigned long thread_id;
    Fault fault;
};
// Under the GIL. `waits`: the asker is in the handler and stays there until this returns.
using RunErrand = void (*)(const Errand& errand, bool waits);

void prepare_herald();  // not in the handler

// In the handler. False if the herald cannot be asked.
bool send_herald(const Errand& errand, RunErrand run);

}  // namespace bequest
