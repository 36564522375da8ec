// bequest._core.TransactionBase and JournalBase: two of the ways to change a heap, as with statements.
#include "heap_handle.hpp"

namespace bequest {

namespace {

// The heap of a with statement that ends at this depth. What has begun within it and not ended fails with it,
// down to `kept`. Of memory that is ours no more nothing can be undone: that is left to whoever opens the
// heap there.
Heap& ending(HeapBase& base, uint64_t depth, uint64_t kept) {
    Heap* heap = nullptr;
    try {
        heap = &base.usable();
    } catch (const nb::python_error&) {
        base.give_up();
        throw;
    }
    if (heap->depth() == depth) return *heap;
    for (uint64_t level = heap->depth(); level > kept; level--) heap->abort_or_give_up();
    raise<HeapMisuse>("a transaction has begun within this one, and not ended: both are undone");
}

struct TransactionBase {
    nb::object heap;
    uint64_t depth = 0;  // of the heap when it had begun, or 0

    HeapBase& base() const { return *nb::inst_ptr<HeapBase>(heap); }
    Heap& begun() const {
        Heap& all = base().usable();
        if (depth == 0) raise<HeapMisuse>("this transaction is not under way: use it in a with statement");
        if (all.depth() != depth)
            raise<HeapMisuse>("another transaction has begun within this one, and not ended");
        return all;
    }
};

struct JournalBase {
    nb::object heap;
    std::unique_ptr<Journal> journal;  // while it is under way
    uint64_t depth = 0;

    HeapBase& base() const { return *nb::inst_ptr<HeapBase>(heap); }
    Journal& begun() const {
        if (!journal) raise<HeapMisuse>("this journal is not under way: use it in a with statement");
        if (base().usable().depth() != depth)
            raise<HeapMisuse>("a transaction has begun within this journal, and not ended");
        return *journal;
    }
};

void enter_journal(JournalBase& journal) {
    if (journal.journal) raise<HeapMisuse>("this journal is under way already");
    journal.journal = journal.base().begin_journal();
    journal.depth = journal.base().usable().depth();
}

void write(JournalBase& journal, nb::handle target, nb::handle data) {
    const Bytes to(target.ptr()), from(data.ptr());
    if (to.view().size() != from.view().size())
        raise<HeapMisuse>("%zu bytes cannot be written over %zu", from.view().size(), to.view().size());
    journal.begun().write(const_cast<char*>(to.view().data()), from.view().data(), from.view().size());
}

bool leave_journal(JournalBase& self, nb::handle type, nb::handle, nb::handle) {
    const std::unique_ptr<Journal> journal = std::move(self.journal);  // undone with it, unless committed
    ending(self.base(), self.depth, self.depth);
    if (type.is_none()) journal->commit();
    return false;
}

void snapshot(TransactionBase& transaction, nb::handle buffer) {
    Py_buffer view;
    if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
    try {
        transaction.begun().snapshot(view.buf, static_cast<uint64_t>(view.len));
    } catch (...) {
        PyBuffer_Release(&view);
        throw;
    }
    PyBuffer_Release(&view);
}

// An exception in the body undoes it.
bool leave(TransactionBase& transaction, nb::handle type, nb::handle, nb::handle) {
    const uint64_t depth = std::exchange(transaction.depth, 0);
    if (depth == 0) raise<HeapMisuse>("this transaction is not under way");
    Heap& heap = ending(transaction.base(), depth, depth - 1);
    if (!type.is_none()) {
        heap.abort_or_give_up();
        return false;
    }
    try {
        heap.commit();
    } catch (...) {
        heap.abort_or_give_up();
        throw;
    }
    return false;
}

}  // namespace

void bind_transaction(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<JournalBase>(m, "JournalBase", "What is written all at once; see Heap.journal.")
        .def(
            "__init__",
            [](JournalBase* self, nb::handle_t<HeapBase> heap) {
                new (self) JournalBase{nb::borrow(heap), nullptr};
            },
            "heap"_a)
        .def("__enter__",
             [](nb::handle_t<JournalBase> self) {
                 enter_journal(*nb::inst_ptr<JournalBase>(self));
                 return nb::borrow(self);
             })
        .def("__exit__", &leave_journal, "type"_a.none(), "value"_a.none(), "traceback"_a.none())
        .def("write", &write, "target"_a, "data"_a,
             "Note that these bytes of the heap shall become those; that happens at the end of the with "
             "statement.");
    nb::class_<TransactionBase>(m, "TransactionBase",
                                "What happens whole or not at all; see Heap.transaction.")
        .def(
            "__init__",
            [](TransactionBase* self, nb::handle_t<HeapBase> heap) {
                new (self) TransactionBase{nb::borrow(heap)};
            },
            "heap"_a)
        .def("__enter__",
             [](nb::handle_t<TransactionBase> self) {
                 TransactionBase& transaction = *nb::inst_ptr<TransactionBase>(self);
                 if (transaction.depth != 0) raise<HeapMisuse>("this transaction is under way already");
                 transaction.base().begin();
                 transaction.depth = transaction.base().usable().depth();
                 return nb::borrow(self);
             })
        .def("__exit__", &leave, "type"_a.none(), "value"_a.none(), "traceback"_a.none())
        .def("snapshot", &snapshot, "buffer"_a,
             "Note what is in these bytes of the heap, before you change them: an exception brings it back.");
}

}  // namespace bequest
