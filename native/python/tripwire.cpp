#include "tripwire.hpp"

#include <algorithm>
#include <vector>

namespace bequest {

#if PY_VERSION_HEX < 0x030C0000

namespace {

PyObject* our_classes[2] = {};
PyObject* opcodes_attribute = nullptr;
PyObject* empty_function = nullptr;

struct Tripwire {
    PyThreadState* thread;
    Py_tracefunc function;  // what was there before
    PyObject* object;
    PyFrameObject* frame;
    bool traced_opcodes;
    int faulted_at;      // the instruction, by its offset
    PyCodeObject* code;  // whose exception table is replaced, or nullptr
    PyObject* table;     // its own
};
Tripwire tripwires[64];

int trip(PyObject*, PyFrameObject* frame, int what, PyObject* argument);

Tripwire* tripwire_of(PyThreadState* thread) {
    for (Tripwire& wire : tripwires)
        if (wire.thread == thread) return &wire;
    return nullptr;
}

// --- exception tables (Objects/exception_handling_notes.txt in CPython) ---------------------------

struct Handler {
    int start, end;  // of the instructions that it handles
    int target, depth_and_lasti;
};

const unsigned char* read_number(const unsigned char* at, int& number) {
    number = *at & 63;
    while (*at++ & 64) number = number << 6 | (*at & 63);
    return at;
}

void write_number(std::vector<char>& bytes, int number, int first_bit) {
    int shift = 24;
    while (shift > 0 && number >> shift == 0) shift -= 6;
    for (; shift >= 0; shift -= 6) {
        const int more = shift > 0 ? 64 : 0;
        bytes.push_back(static_cast<char>((number >> shift & 63) | more | first_bit));
        first_bit = 0;
    }
}

std::vector<Handler> handlers_in(PyObject* table) {
    std::vector<Handler> handlers;
    const auto* at = reinterpret_cast<const unsigned char*>(PyBytes_AS_STRING(table));
    const auto* end = at + PyBytes_GET_SIZE(table);
    while (at < end) {
        Handler handler = {};
        int length = 0;
        at = read_number(at, handler.start);
        at = read_number(at, length);
        at = read_number(at, handler.target);
        at = read_number(at, handler.depth_and_lasti);
        handler.end = handler.start + length;
        handlers.push_back(handler);
    }
    return handlers;
}

PyObject* table_of(std::vector<Handler>& handlers) {
    std::sort(handlers.begin(), handlers.end(),
              [](const Handler& a, const Handler& b) { return a.start < b.start; });
    std::vector<char> bytes;
    for (const Handler& handler : handlers) {
        write_number(bytes, handler.start, 128);
        write_number(bytes, handler.end - handler.start, 0);
        write_number(bytes, handler.target, 0);
        write_number(bytes, handler.depth_and_lasti, 0);
    }
    return PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size()));
}

const Handler* handler_of(const std::vector<Handler>& handlers, int offset) {
    for (const Handler& handler : handlers)
        if (offset >= handler.start && offset < handler.end) return &handler;
    return nullptr;
}

bool is_replaced(const PyCodeObject* code) {
    for (const Tripwire& wire : tripwires)
        if (wire.thread && wire.code == code) return true;
    return false;
}

// A table in which an exception at `offset` has the handler that one at the faulting instruction has, or
// none.
PyObject* table_with_one_handler(PyObject* table, int faulted_at, int offset) {
    const std::vector<Handler> handlers = handlers_in(table);
    const Handler* wanted = handler_of(handlers, faulted_at);
    if (wanted == handler_of(handlers, offset)) return nullptr;
    std::vector<Handler> changed;
    for (const Handler& handler : handlers) {
        Handler before = handler, after = handler;
        before.end = std::min(handler.end, offset);
        after.start = std::max(handler.start, offset + 1);
        if (before.start < before.end) changed.push_back(before);
        if (after.start < after.end) changed.push_back(after);
    }
    if (wanted) changed.push_back({offset, offset + 1, wanted->target, wanted->depth_and_lasti});
    return table_of(changed);
}

void replace_table(Tripwire& wire, PyFrameObject* frame) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    const int unit = sizeof(_Py_CODEUNIT), offset = PyFrame_GetLasti(frame) / unit;
    PyObject* table = is_replaced(code)
                          ? nullptr
                          : table_with_one_handler(code->co_exceptiontable, wire.faulted_at / unit, offset);
    if (!table) {
        PyErr_Clear();
        Py_DECREF(code);
        return;
    }
    wire.code = code;
    wire.table = code->co_exceptiontable;
    code->co_exceptiontable = table;
}

void put_table_back(Tripwire& wire) {
    if (!wire.code) return;
    Py_SETREF(wire.code->co_exceptiontable, wire.table);
    wire.table = nullptr;
    Py_CLEAR(wire.code);
}

// --- arming and tripping --------------------------------------------------------------------------

void set_trace(PyThreadState* thread, Py_tracefunc function, PyObject* object) {
    thread->c_tracefunc = function;
    thread->c_traceobj = object;
    thread->cframe->use_tracing = thread->c_tracefunc || thread->c_profilefunc ? 255 : 0;
}

void disarm(Tripwire& wire) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    put_table_back(wire);
    PyObject_SetAttr(reinterpret_cast<PyObject*>(wire.frame), opcodes_attribute,
                     wire.traced_opcodes ? Py_True : Py_False);
    if (wire.thread->c_tracefunc == trip) {
        set_trace(wire.thread, wire.function, wire.object);
    } else {
        Py_XDECREF(wire.object);  // somebody traces this thread since
    }
    wire.thread = nullptr;
    Py_CLEAR(wire.frame);
    PyErr_Restore(type, value, trace);
}

bool is_ours(PyObject* type) { return type && (type == our_classes[0] || type == our_classes[1]); }

// The asynchronous exception rises in the first function that is called. (To clear it and raise another would
// leave the interpreter looking for it at every turn: it forgets to look only when it finds one.) What the C
// code has raised becomes its context. False if nothing has risen.
bool raise_waiting(PyObject* raised) {
    PyObject* none = PyObject_CallNoArgs(empty_function);
    Py_XDECREF(none);
    if (none) return false;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (raised && PyExceptionInstance_Check(raised) && value != raised) {
        Py_INCREF(raised);
        PyException_SetContext(value, raised);
    }
    PyErr_SetObject(type, value);
    Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(trace);
    return true;
}

int trip(PyObject*, PyFrameObject* frame, int what, PyObject* argument) {
    PyThreadState* thread = PyThreadState_Get();
    Tripwire* wire = tripwire_of(thread);
    if (!wire) return 0;
    if (wire->code) {  // tripped: the handler has been looked up once anything but the raise is traced
        if (what != PyTrace_EXCEPTION) disarm(*wire);
        return 0;
    }
    // Else it has risen already, and is being made.
    const bool rises = is_ours(thread->async_exc) &&
                       raise_waiting(what == PyTrace_EXCEPTION ? PyTuple_GetItem(argument, 1) : nullptr);
    if (!rises) {
        disarm(*wire);
        return 0;
    }
    const bool is_next = frame == wire->frame && (what == PyTrace_LINE || what == PyTrace_OPCODE);
    if (is_next) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        replace_table(*wire, frame);
        PyErr_Restore(type, value, trace);
    }
    if (!wire->code) disarm(*wire);
    return -1;
}

}  // namespace

void prepare_tripwires(PyObject* one_class, PyObject* other_class) {
    our_classes[0] = one_class;
    our_classes[1] = other_class;
    opcodes_attribute = PyUnicode_InternFromString("f_trace_opcodes");
    PyObject* nothing = PyDict_New();
    empty_function = PyRun_String("lambda: None", Py_eval_input, nothing, nothing);
    Py_DECREF(nothing);
}

void arm_tripwire(PyThreadState* thread) {
    Tripwire* wire = tripwire_of(thread);
    if (wire && thread->c_tracefunc == trip) return;
    if (!wire) wire = tripwire_of(nullptr);
    if (!wire || thread->tracing > 0 || !empty_function) return;
    PyFrameObject* frame = PyThreadState_GetFrame(thread);
    if (!frame) return;
    PyObject* as_object = reinterpret_cast<PyObject*>(frame);
    PyObject* traced = PyObject_GetAttr(as_object, opcodes_attribute);
    if (!traced || PyObject_SetAttr(as_object, opcodes_attribute, Py_True) != 0) {
        Py_XDECREF(traced);
        Py_DECREF(frame);
        return;
    }
    *wire = {thread,
             thread->c_tracefunc,
             thread->c_traceobj,
             frame,
             traced == Py_True,
             PyFrame_GetLasti(frame),
             nullptr,
             nullptr};
    Py_DECREF(traced);
    set_trace(thread, trip, nullptr);
}

// Not while it trips: the exception is made then, and the tripwire is taken away after the raise.
void disarm_tripwire() {
    PyThreadState* thread = PyThreadState_Get();
    Tripwire* wire = tripwire_of(thread);
    if (wire && thread->tracing == 0) disarm(*wire);
}

#else

void prepare_tripwires(PyObject*, PyObject*) {}
void arm_tripwire(PyThreadState*) {}
void disarm_tripwire() {}

#endif

}  // namespace bequest
