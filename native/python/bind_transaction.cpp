// bequest._core.TransactionBase and JournalBase: two of the ways to change a heap, as with statements.
#include "heap_handle.hpp"

namespace bequest {

namespace {

// The heap, if this level of it is the one that has begun last.
Heap& in_level(const HeapBase& base, uint64_t level) {
    Heap& heap = base.usable();
    heap.require_whole();
    if (!heap.is_under_way(level))
        raise<HeapMisuse>(
            "this transaction has been undone before, with the one it had begun within: end it before that");
    if (heap.level() != level)
        raise<HeapMisuse>("another transaction has begun within this one, and not ended: end that first");
    return heap;
}

// A with statement ends. What fails in it, and what has begun within it and not ended, is undone, and the
// exception passes as it is: a KeyboardInterrupt must not become something that `except Exception` catches.
template <class Commit>
void end(HeapBase& base, uint64_t level, nb::handle exception, const Commit& commit) {
    if (!exception.is_none()) return base.undo(level);
    try {
        commit(in_level(base, level));
    } catch (...) {
        base.undo(level);
        throw;
    }
}

struct TransactionBase {
    nb::object heap;
    uint64_t level = 0;  // while it is under way

    HeapBase& base() const { return heap_of(heap); }
    Heap& begun() const {
        if (level == 0) raise<HeapMisuse>("this transaction is not under way: use it in a with statement");
        return in_level(base(), level);
    }
};

struct JournalBase {
    nb::object heap;
    std::unique_ptr<Journal> journal = nullptr;  // while it is under way
    uint64_t level = 0;

    // One that was forgotten ends as if it had failed.
    ~JournalBase() {
        if (!journal) return;
        const nb::error_scope kept;
        try {
            base().undo(level);
        } catch (...) {  // whoever uses the heap next is told
        }
    }
    HeapBase& base() const { return heap_of(heap); }
    Journal& begun() const {
        if (!journal) raise<HeapMisuse>("this journal is not under way: use it in a with statement");
        in_level(base(), level);
        return *journal;
    }
};

void enter_journal(JournalBase& journal) {
    if (journal.journal) raise<HeapMisuse>("this journal is under way already");
    journal.journal = journal.base().begin_journal();
    journal.level = journal.journal->release();
}

void write(JournalBase& journal, nb::handle target, nb::handle data) {
    const Bytes to(target.ptr()), from(data.ptr());
    if (to.view().size() != from.view().size())
        raise<HeapMisuse>("%zu bytes cannot be written over %zu", from.view().size(), to.view().size());
    journal.begun().write(const_cast<char*>(to.view().data()), from.view().data(), from.view().size());
}

bool leave_journal(JournalBase& self, nb::handle type, nb::handle, nb::handle) {
    const std::unique_ptr<Journal> journal = std::move(self.journal);
    if (!journal) raise<HeapMisuse>("this journal is not under way");
    end(self.base(), self.level, type, [&](Heap&) { journal->commit(); });
    return false;
}

void snapshot(TransactionBase& transaction, nb::handle buffer) {
    const Bytes bytes(buffer.ptr());
    transaction.begun().snapshot(bytes.view().data(), bytes.view().size());
}

bool leave(TransactionBase& transaction, nb::handle type, nb::handle, nb::handle) {
    const uint64_t level = std::exchange(transaction.level, 0);
    if (level == 0) raise<HeapMisuse>("this transaction is not under way");
    end(transaction.base(), level, type, [](Heap& heap) { heap.commit(); });
    return false;
}

}  // namespace

void bind_transaction(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<JournalBase>(m, "JournalBase", "What is written all at once; see Heap.journal.")
        .def(
            "__init__",
            [](JournalBase* self, nb::handle_t<HeapBase> heap) { new (self) JournalBase{nb::borrow(heap)}; },
            "heap"_a)
        .def("__enter__",
             [](nb::handle_t<JournalBase> self) {
                 enter_journal(instance_of<JournalBase>(self.ptr()));
                 return nb::borrow(self);
             })
        .def("__exit__", &leave_journal, "type"_a.none(), "value"_a.none(), "traceback"_a.none())
        .def("write", &write, "target"_a.none(), "data"_a.none(),
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
                 TransactionBase& transaction = instance_of<TransactionBase>(self.ptr());
                 if (transaction.level != 0) raise<HeapMisuse>("this transaction is under way already");
                 transaction.level = transaction.base().begin();
                 return nb::borrow(self);
             })
        .def("__exit__", &leave, "type"_a.none(), "value"_a.none(), "traceback"_a.none())
        .def("snapshot", &snapshot, "buffer"_a.none(),
             "Note what is in these bytes of the heap, before you change them: an exception brings it back.");
}

}  // namespace bequest
