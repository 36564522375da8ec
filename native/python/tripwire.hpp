// Raises what a fault has left for a thread before its next Python instruction.
//
// Theory of operation. The interpreter looks for an asynchronous exception only at calls, loops and the
// beginnings of functions, and the instruction that faulted may be none of these: `view[0]` or `array[:] = 1`
// at the end of a try block would raise behind it. A tripwire is a trace function of the C interface, set in
// the handler, while the faulting instruction is under way: it is called before the next instruction, or for
// whatever exception the C code raises over what it has read, and raises instead. Then it takes itself away
// and puts back what was there, a debugger's for instance.
//
// That next instruction may lie outside of the try block that the faulting one is in. So for that one raise
// the code's exception table is replaced by one in which both have the same handler.
//
// All of it under the GIL. CPython's trace machinery was rebuilt in 3.12; this knows the one of 3.11, and
// does nothing elsewhere: there the exception rises at the next call or loop.
#pragma once

#include <Python.h>

namespace bequest {

void prepare_tripwires(PyObject* one_class, PyObject* other_class);  // of the exceptions that are ours
void arm_tripwire(PyThreadState* thread);  // in the handler: without garbage collection
void disarm_tripwire();                    // of the calling thread, if it has one

}  // namespace bequest
