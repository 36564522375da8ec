#include "fault_barrier.hpp"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>

#include "address_space.hpp"
#include "doorbell.hpp"
#include "kernel.hpp"
#include "mappings.hpp"

namespace bequest {

namespace {

// The fifth fault of a row, and each after it, covers up to 16 pages. A row that long touches memory here and
// there: then 2 MiB at a time, lest the kernel runs out of mappings.
constexpr uint32_t kRowMax = 4, kLongRow = 4096;
constexpr size_t kRecordsMax = 256;
constexpr uint32_t kRetriesMax = 1000;
constexpr int64_t kToldAgainNs = 100'000'000;  // what was told before may have been swallowed by other code
constexpr int64_t kStaleNs = 1'000'000'000;    // no row is told so late again: it is another one
constexpr int64_t kRestMin_ns = 50'000, kRestMax_ns = 2'000'000;  // between looks at a fenced page
constexpr int kSignals[] = {SIGSEGV, SIGBUS};

std::atomic<pthread_t> lock_holder{};  // of the window lock
static_assert(std::atomic<pthread_t>::is_always_lock_free);

std::atomic<const AddressSpace*> guarded{nullptr};
std::atomic<pid_t> guardian{0};  // a forked child has no window
std::atomic<TellLanguage> tell_language{nullptr};
std::atomic<void (*)()> tell_of_hardware{nullptr};
std::atomic<bool> raw_signals{false};
std::atomic<int64_t> patience_ns{kFencePatience_ns};

// Whoever had the signal before. Written before our handler can see it, with the window lock held.
struct sigaction previous_segv, previous_bus;
struct sigaction& previous(int signal) { return signal == SIGSEGV ? previous_segv : previous_bus; }
std::atomic<pthread_t> passing_on{};  // a thread that is inside of a previous handler
std::atomic<const void*> passed_on_address{};
std::atomic<uint32_t> passed_on_times{0};

// A thread's row of faults: from the first to the exception. Under the window lock.
struct Record {
    pthread_t thread;
    bool used = false;
    bool adopted = false;  // from another thread: no row of its own
    Fault fault;
    int64_t told_ns;
    uint32_t length;
    uint64_t last_address;
    uint32_t repeated;
    Windows windows;
};
Record records[kRecordsMax];

// What the hardware has lost: the address of a page, and in its low bits the binary logarithm of how much.
std::atomic<uint64_t> hardware_errors[16];

// False if this thread has it already.
bool lock_window() {
    const pthread_t me = pthread_self();
    if (lock_holder.load(std::memory_order_relaxed) == me) return false;
    for (pthread_t nobody{}; !lock_holder.compare_exchange_weak(nobody, me, std::memory_order_acquire);
         nobody = {})
        sched_yield();
    return true;
}

void unlock_window() { lock_holder.store({}, std::memory_order_release); }

void unlock_in_child() { unlock_window(); }  // a handler of another thread may have held it at the fork

Record* record_of(pthread_t thread) {
    for (Record& record : records)
        if (record.used && !record.adopted && record.thread == thread) return &record;
    return nullptr;
}

Record& new_record(pthread_t thread) {
    Record* oldest = &records[0];
    for (Record& record : records) {
        if (!record.used) {
            oldest = &record;
            break;
        }
        if (record.told_ns < oldest->told_ns) oldest = &record;
    }
    *oldest = Record{};
    oldest->thread = thread;
    oldest->used = true;
    return *oldest;
}

// Would a store to these pages succeed? Asked of the kernel, which answers with an error where the store
// would get a signal. A page that may not be written is not ours, whether or not it can be read.
bool takes_stores(uint64_t page, uint64_t end) {
    return madvise(pointer(page), end - page, MADV_POPULATE_WRITE) == 0;
}

// Of a sealed page, a load.
bool is_good(uint64_t page) {
    const AddressSpace* space = guarded.load();
    if (!space || !space->is_sealed(page, page + kPageBytes)) return takes_stores(page, page + kPageBytes);
    return madvise(pointer(page), kPageBytes, MADV_POPULATE_READ) == 0;
}

bool is_readable(uint64_t page) {
    char byte;
    const struct iovec to = {&byte, 1}, from = {pointer(page), 1};
    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

// Covers the page, and its bad neighbours as far as the length of the row says.
bool cover(Record& record, uint64_t page, const Believed& believed, FaultKind kind) {
    const uint64_t reach =
        record.length >= kLongRow ? kHugePageBytes : kPageBytes << std::min(record.length, kRowMax);
    record.length++;
    const uint64_t first = std::max(believed.start, page / reach * reach);
    const uint64_t last = std::min(believed.end, page / reach * reach + reach);
    const auto is_bad = [&](uint64_t other) {
        return believed.belief == Belief::kLost || note_of(other) || !is_good(other);
    };
    uint64_t start = page, end = page + kPageBytes;
    while (end < last && is_bad(end)) end += kPageBytes;
    while (start > first && is_bad(start - kPageBytes)) start -= kPageBytes;
    if (open_window(record.windows, start, end, kind)) return true;
    // Pages of reserved 2 MiB pages can be covered only whole.
    start = page / kHugePageBytes * kHugePageBytes;
    end = start + kHugePageBytes;
    return errno == EINVAL && start >= believed.start && end <= believed.end &&
           open_window(record.windows, start, end, kind);
}

// A fault that comes again and again has a cause that we do not know.
bool may_try_again(Record& record, uint64_t address) {
    record.repeated = record.last_address == address ? record.repeated + 1 : 0;
    record.last_address = address;
    return record.repeated < kRetriesMax;
}

}  // namespace

// Under the window lock.
class DeedsList {
public:
    void add(Deeds& deeds) {
        deeds.next_ = first_;
        first_ = &deeds;
    }
    void remove(const Deeds& deeds) {
        for (Deeds** link = &first_; *link; link = &(*link)->next_)
            if (*link == &deeds) {
                *link = deeds.next_;
                return;
            }
    }
    bool say_ours(uint64_t address) const {
        for (const Deeds* deeds = first_; deeds; deeds = deeds->next_)
            if (deeds->is_ours(address)) return true;
        return false;
    }

private:
    Deeds* first_ = nullptr;
};

namespace {

DeedsList deeds;

enum class Verdict { kNotOurs, kTryAgain, kWait, kLost, kLostAndTold };

FaultKind kind_of(const Fault& fault, uint64_t page) {
    if (const ScratchRange* note = note_of(page)) return note->kind;
    return fault.signal == SIGSEGV || is_readable(page) ? FaultKind::kFenced : FaultKind::kFailed;
}

// In any instruction, of this library's or of malloc's too: nothing is locked for it.
bool is_early_warning(int signal, const siginfo_t* info) {
    return signal == SIGBUS && info->si_code == BUS_MCEERR_AO &&
           in_window(reinterpret_cast<uint64_t>(info->si_addr)) && guardian.load() == getpid() &&
           guarded.load();
}

bool is_hardware_error(const Fault& fault) { return fault.signal == SIGBUS && fault.code == BUS_MCEERR_AR; }

void note_hardware_error(const siginfo_t* info) {
    const auto bits = static_cast<uint64_t>(std::clamp<int>(info->si_addr_lsb, 12, 21));
    const uint64_t note = reinterpret_cast<uint64_t>(info->si_addr) >> bits << bits | bits;
    for (auto& place : hardware_errors) {
        uint64_t empty = 0;
        if (place.compare_exchange_strong(empty, note) || empty == note) return;
    }
}

// Fenced for a theft that has not come about, and may never.
bool is_fenced_but_ours(const Fault& fault, uint64_t page) {
    return fault.signal == SIGBUS && is_readable(page) && deeds.say_ours(page);
}

// The first fault of a row is what the program did; those that follow are the same C code going on.
Verdict judge(const AddressSpace& space, Fault& fault, bool may_wait) {
    const Believed believed = space.believed(fault.address);
    if (believed.belief == Belief::kClosed) return Verdict::kNotOurs;
    const uint64_t page = fault.address / kPageBytes * kPageBytes;
    // Another thread was opening the page: the access will succeed.
    const bool may_succeed = believed.belief == Belief::kOpen && !note_of(page) && !is_hardware_error(fault);
    const bool succeeds = may_succeed && is_good(page);
    if (may_succeed && !succeeds && may_wait && is_fenced_but_ours(fault, page)) return Verdict::kWait;
    Record* record = record_of(pthread_self());
    if (!record) record = &new_record(pthread_self());
    const bool is_first = record->told_ns == 0;
    if (!may_try_again(*record, fault.address)) return Verdict::kNotOurs;
    if (succeeds) return Verdict::kTryAgain;
    fault.kind = is_hardware_error(fault) ? FaultKind::kFailed : kind_of(fault, page);
    if (!is_first && note_of(page)) widen(record->windows);  // it has come back to a window that was closed
    if (!cover(*record, page, believed, fault.kind)) return Verdict::kNotOurs;
    const int64_t now = monotonic_ns();
    if (!is_first && now - record->told_ns < kToldAgainNs) return Verdict::kLostAndTold;
    if (is_first || now - record->told_ns > kStaleNs) record->fault = fault;
    record->told_ns = now;
    return Verdict::kLost;
}

bool is_memory_fault(const siginfo_t* info) { return info->si_code > 0 && info->si_code != SI_KERNEL; }

Verdict look_at(int signal, const siginfo_t* info, Fault& fault, bool may_wait) {
    const auto address = reinterpret_cast<uint64_t>(info->si_addr);
    if (!is_memory_fault(info) || !in_window(address) || guardian.load() != getpid() || !lock_window())
        return Verdict::kNotOurs;
    fault = {address, FaultKind::kFailed, signal, info->si_code, pthread_self()};
    const AddressSpace* space = guarded.load();
    const Verdict verdict = space ? judge(*space, fault, may_wait) : Verdict::kNotOurs;
    unlock_window();
    if (verdict != Verdict::kNotOurs && is_hardware_error(fault)) note_hardware_error(info);
    return verdict;
}

// The instruction is executed again, and its signal kills as if we had never been; a signal that was sent is
// sent again.
void die_of(int signal, bool is_sent) {
    struct sigaction action = {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
    if (is_sent) raise(signal);
}

enum class Instruction { kFaultsAgain, kIsSaved };

// The handler before us may have done nothing, as one that was switched off does: then the same fault is
// back.
bool is_hopeless(const siginfo_t* info) {
    if (info->si_code <= 0) return false;
    if (passed_on_address.exchange(info->si_addr) != info->si_addr) passed_on_times.store(0);
    return passed_on_times.fetch_add(1) >= kRetriesMax;
}

void pass_on(int signal, siginfo_t* info, void* context, Instruction instruction) {
    const struct sigaction& next = previous(signal);
    const bool is_sent = info->si_code <= 0;
    if (is_sent && next.sa_handler == SIG_IGN) return;
    // A handler that came after us has us for its predecessor, to which it may hand on what we hand to it.
    const bool came_round = passing_on.load() == pthread_self() && instruction != Instruction::kIsSaved;
    const bool in_vain = instruction == Instruction::kFaultsAgain && is_hopeless(info);
    if (came_round || in_vain || next.sa_handler == SIG_DFL || next.sa_handler == SIG_IGN)
        return die_of(signal, is_sent || instruction == Instruction::kIsSaved);
    passing_on.store(pthread_self());
    if (next.sa_flags & SA_SIGINFO) {
        next.sa_sigaction(signal, info, context);
    } else {
        next.sa_handler(signal);
    }
    passing_on.store({});
}

// What is fenced is fenced or stolen for good within a millisecond or two, unless a daemon has died.
Verdict await_verdict(int signal, const siginfo_t* info, Fault& fault) {
    Verdict verdict = look_at(signal, info, fault, true);
    if (verdict != Verdict::kWait) return verdict;
    const int64_t start = monotonic_ns(), patience = patience_ns.load();
    for (int64_t waited = 0; verdict == Verdict::kWait; waited = monotonic_ns() - start) {
        const timespec rest{0, std::clamp<int64_t>(waited / 8, kRestMin_ns, kRestMax_ns)};
        nanosleep(&rest, nullptr);
        verdict = look_at(signal, info, fault, waited < patience);
    }
    return verdict;
}

void on_signal(int signal, siginfo_t* info, void* context) {
    const int saved_errno = errno;
    if (is_early_warning(signal, info)) {
        if (raw_signals.load()) {
            pass_on(signal, info, context, Instruction::kIsSaved);
        } else {
            note_hardware_error(info);
        }
        errno = saved_errno;
        return;
    }
    Fault fault;
    const Verdict verdict = await_verdict(signal, info, fault);
    if (verdict == Verdict::kNotOurs) {
        pass_on(signal, info, context, Instruction::kFaultsAgain);
    } else if (verdict != Verdict::kTryAgain && raw_signals.load()) {
        pass_on(SIGBUS, info, context, Instruction::kIsSaved);
    } else if (verdict == Verdict::kLost) {
        if (const TellLanguage tell = tell_language.load()) tell(fault);
    }
    errno = saved_errno;
}

void install(int signal) {
    struct sigaction ours = {}, now = {};
    sigaction(signal, nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_signal) return;
    previous(signal) = now;
    ours.sa_sigaction = on_signal;
    // On the alternate stack where a thread has one: a stack that has overflown is the next handler's to
    // report. Not blocked meanwhile: a fault inside the next handler must reach the one after.
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&ours.sa_mask);
    if (sigaction(signal, &ours, nullptr) != 0) fail("installing the fault handler", errno);
}

}  // namespace

WindowLock::WindowLock() : taken_(lock_window()) {}
WindowLock::~WindowLock() {
    if (taken_) unlock_window();
}

void guard_window(const AddressSpace* space) {
    if (space) make_scratch_file();
    static const int at_fork = pthread_atfork(nullptr, nullptr, unlock_in_child);
    (void)at_fork;
    {
        const WindowLock lock;
        guardian.store(getpid());
        guarded.store(space);
        forget_scratch();
        end_rows();
    }
    if (space) stand_first_in_line();
}

void ask_deeds(Deeds& more) {
    const WindowLock lock;
    deeds.add(more);
}

void ask_deeds_no_more(Deeds& gone) {
    const WindowLock lock;
    deeds.remove(gone);
}

void have_patience(int64_t nanoseconds) { patience_ns.store(nanoseconds); }

void tell_faults_to(TellLanguage tell) { tell_language.store(tell); }

void stand_first_in_line() {
    if (guardian.load() != getpid()) return;
    const WindowLock lock;
    for (int signal : kSignals) install(signal);
}

// Whoever opens pages for a new owner does so after this, and then opens these as well. If the kernel
// refuses, they stay as the fence has left them.
void close_stale(uint64_t address, uint64_t nbytes, bool (*is_stale)(void* what), void* what) {
    const WindowLock lock;
    const AddressSpace* space = guarded.load();
    if (!space || guardian.load() != getpid()) return;
    space->for_each_open(address, address + nbytes, [&](uint64_t start, uint64_t end) {
        if (!is_stale(what)) return;
        if (!space->is_only_read(start, end)) mprotect(pointer(start), end - start, PROT_NONE);
    });
}

namespace {

// The same pages of the same file by another mapping, of which no userfaultfd knows: mremap of a shared
// mapping from a length of 0 makes one, and moving it over the old one is a single step for all other
// threads.
void map_again(uint64_t start, uint64_t end) try {
    for (const PageRun& run : mappings_within(getpid(), {start, end - start})) {
        void* const copy = mremap(pointer(run.address), 0, run.nbytes, MREMAP_MAYMOVE);
        if (copy == MAP_FAILED) return;
        const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        if (mremap(copy, run.nbytes, run.nbytes, flags, pointer(run.address)) != MAP_FAILED) continue;
        munmap(copy, run.nbytes);
        return;
    }
} catch (const std::system_error&) {  // there is no descriptor left to look what is mapped
}

bool close_pages(uint64_t start, uint64_t end) {
    return mprotect(pointer(start), end - start, PROT_NONE) == 0;
}

bool make_writable(uint64_t start, uint64_t end) {
    return mprotect(pointer(start), end - start, PROT_READ | PROT_WRITE) == 0 && takes_stores(start, end);
}

}  // namespace

// A theft ends with a fence behind the change of the words. Opening leaves the kernel's write protection as
// it is, but a mapping made anew has none. So that one is made closed, and the words are looked at behind
// that: if the last fence came before the mapping was there, they have changed.
bool open_ours(uint64_t address, uint64_t nbytes, bool (*is_ours)(void* what), void* what, Mending mending) {
    const WindowLock lock;
    const AddressSpace* space = guarded.load();
    if (!space || guardian.load() != getpid()) return true;
    bool is_done = true;
    space->for_each_open(address, address + nbytes, [&](uint64_t start, uint64_t end) {
        if (has_scratch(start, end) || !is_ours(what)) return;  // what has scratch memory is lost
        bool is_open = make_writable(start, end);
        if (!is_open && mending == Mending::kMapAgain && close_pages(start, end)) {
            map_again(start, end);
            if (is_ours(what)) is_open = make_writable(start, end);
        }
        if (space->is_sealed(start, end)) mprotect(pointer(start), end - start, PROT_READ);
        if (!is_ours(what)) close_pages(start, end);
        is_done &= is_open;
    });
    return is_done;
}

void pass_raw_signals(bool raw) {
    raw_signals.store(raw);
    stand_first_in_line();
}

bool take_fault(Fault& fault) {
    const WindowLock lock;
    for (Record& record : records) {
        if (!record.used || record.thread != pthread_self() || record.told_ns == 0) continue;
        fault = record.fault;
        record.used = false;
        return true;
    }
    return false;
}

bool has_hardware_errors() {
    return std::any_of(std::begin(hardware_errors), std::end(hardware_errors),
                       [](const auto& place) { return place.load(std::memory_order_relaxed) != 0; });
}

void tell_hardware_errors_to(void (*tell)()) { tell_of_hardware.store(tell); }

void tell_hardware_errors() {
    void (*const tell)() = has_hardware_errors() ? tell_of_hardware.load() : nullptr;
    if (tell) tell();
}

bool take_hardware_error(HardwareError& error) {
    for (auto& place : hardware_errors) {
        const uint64_t note = place.exchange(0);
        if (note == 0) continue;
        const uint64_t bits = note & (kPageBytes - 1);
        error = {note - bits, uint64_t{1} << bits};
        return true;
    }
    return false;
}

void adopt_fault(const Fault& fault) {
    const WindowLock lock;
    if (Record* stray = record_of(fault.thread)) stray->used = false;
    Record& record = new_record(pthread_self());
    record.adopted = true;
    record.fault = fault;
    record.told_ns = monotonic_ns();
}

void end_rows() {
    for (Record& record : records) {
        record.windows = {};
        record.length = record.repeated = 0;
    }
}

}  // namespace bequest
