#include "fault_barrier.hpp"

#include <fcntl.h>
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

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace bequest {

namespace {

constexpr uint64_t kScratchBytes = 16ull << 20;  // what all scratch memory of a process costs at most
constexpr uint32_t kRowMax = 10;                 // so that one fault covers 4 MiB at most
constexpr size_t kScratchRangesMax = 512;
constexpr size_t kRecordsMax = 256;
constexpr uint32_t kRetriesMax = 1000;
constexpr int kSignals[] = {SIGSEGV, SIGBUS};

std::atomic<pthread_t> lock_holder{};  // of the window lock
static_assert(std::atomic<pthread_t>::is_always_lock_free);

std::atomic<const AddressSpace*> guarded{nullptr};
std::atomic<pid_t> guardian{0};  // a forked child has no window
std::atomic<TellLanguage> tell_language{nullptr};
std::atomic<bool> raw_signals{false};
std::atomic<int> scratch_file{-1};

// Whoever had the signal before. Written before our handler can see it, with the window lock held.
struct sigaction previous_segv, previous_bus;
struct sigaction& previous(int signal) { return signal == SIGSEGV ? previous_segv : previous_bus; }
std::atomic<pthread_t> passing_on{};  // a thread that is inside of a previous handler

// All of what follows: under the window lock.
ScratchRange scratch[kScratchRangesMax];
std::atomic<size_t> scratch_count{0};  // may be looked at without the lock
uint32_t row = 0;                      // faults since the last exception
struct Record {
    pthread_t thread;
    bool taken = true;
    uint64_t age;
    Fault fault;
};
Record records[kRecordsMax];
uint64_t next_age = 1;
uint64_t retried_address = 0;
uint32_t retries = 0;

void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

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
        if (!record.taken && record.thread == thread) return &record;
    return nullptr;
}

// The first fault of a row is what the program did; those that follow are the same C code going on.
void write_record(pthread_t thread, const Fault& fault) {
    if (record_of(thread)) return;
    Record* oldest = &records[0];
    for (Record& record : records) {
        if (record.taken) {
            oldest = &record;
            break;
        }
        if (record.age < oldest->age) oldest = &record;
    }
    *oldest = {thread, false, next_age++, fault};
}

// Would a store to this page succeed? Asked of the kernel, which answers with an error where the store would
// get a signal. A page that may not be written is not ours, whether or not it can be read.
bool is_good(uint64_t page) { return madvise(pointer(page), kPageBytes, MADV_POPULATE_WRITE) == 0; }

bool is_readable(uint64_t page) {
    char byte;
    const struct iovec to = {&byte, 1}, from = {pointer(page), 1};
    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

bool is_covered(uint64_t page) { return has_scratch(page, page + kPageBytes); }

bool note_scratch(uint64_t start, uint64_t end, FaultKind kind) {
    for (size_t i = 0; i < scratch_count; i++) {
        ScratchRange& known = scratch[i];
        if (known.end < start || known.start > end || known.kind != kind) continue;
        known = {std::min(start, known.start), std::max(end, known.end), kind};
        return true;
    }
    if (scratch_count == kScratchRangesMax) return false;
    scratch[scratch_count] = {start, end, kind};
    scratch_count++;
    return true;
}

bool map_scratch(uint64_t start, uint64_t end, FaultKind kind) {
    for (uint64_t at = start; at < end;) {
        const uint64_t offset = at % kScratchBytes;
        const uint64_t bytes = std::min(end - at, kScratchBytes - offset);
        if (mmap(pointer(at), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, scratch_file.load(),
                 static_cast<off_t>(offset)) == MAP_FAILED)
            return false;
        madvise(pointer(at), bytes, MADV_DONTFORK);
        at += bytes;
    }
    return note_scratch(start, end, kind);
}

// Covers the page, and its bad neighbours as far as the length of the row says.
bool cover(uint64_t page, const Believed& believed, FaultKind kind) {
    const uint64_t reach = kPageBytes << std::min(row, kRowMax);
    const uint64_t first = std::max(believed.start, page / reach * reach);
    const uint64_t last = std::min(believed.end, page / reach * reach + reach);
    const bool known = believed.belief == Belief::kLost;
    uint64_t start = page, end = page + kPageBytes;
    const auto is_bad = [&](uint64_t other) { return !is_covered(other) && (known || !is_good(other)); };
    while (end < last && is_bad(end)) end += kPageBytes;
    while (start > first && is_bad(start - kPageBytes)) start -= kPageBytes;
    row++;
    if (map_scratch(start, end, kind)) return true;
    // Pages of reserved 2 MiB pages can be covered only whole.
    start = page / kHugePageBytes * kHugePageBytes;
    end = start + kHugePageBytes;
    return errno == EINVAL && start >= believed.start && end <= believed.end && map_scratch(start, end, kind);
}

// With the page as it is now the access will succeed: it was being opened, or covered, by another thread. Yet
// a fault that comes again and again has a cause that we do not know.
bool may_try_again(uint64_t address) {
    retries = retried_address == address ? retries + 1 : 0;
    retried_address = address;
    return retries < kRetriesMax;
}

enum class Verdict { kNotOurs, kTryAgain, kLost };

Verdict judge(const AddressSpace& space, Fault& fault) {
    const Believed believed = space.believed(fault.address);
    if (believed.belief == Belief::kClosed) return Verdict::kNotOurs;
    const uint64_t page = fault.address / kPageBytes * kPageBytes;
    if (is_covered(page)) {  // by another thread, in this moment
        if (!may_try_again(fault.address)) return Verdict::kNotOurs;
    } else {
        if (believed.belief == Belief::kOpen) {
            if (is_good(page)) return may_try_again(fault.address) ? Verdict::kTryAgain : Verdict::kNotOurs;
            const bool fenced = fault.signal == SIGSEGV || is_readable(page);
            fault.kind = fenced ? FaultKind::kFenced : FaultKind::kFailed;
        }
        if (!cover(page, believed, fault.kind)) return Verdict::kNotOurs;
    }
    write_record(pthread_self(), fault);
    return Verdict::kLost;
}

bool is_memory_fault(const siginfo_t* info) { return info->si_code > 0 && info->si_code != SI_KERNEL; }

Verdict look_at(int signal, const siginfo_t* info, Fault& fault) {
    const auto address = reinterpret_cast<uint64_t>(info->si_addr);
    if (!is_memory_fault(info) || !in_window(address) || guardian.load() != getpid() || !lock_window())
        return Verdict::kNotOurs;
    fault = {address, FaultKind::kFailed, signal, info->si_code};
    const AddressSpace* space = guarded.load();
    const Verdict verdict = space ? judge(*space, fault) : Verdict::kNotOurs;
    unlock_window();
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

void pass_on(int signal, siginfo_t* info, void* context, Instruction instruction) {
    const struct sigaction& next = previous(signal);
    const bool is_sent = info->si_code <= 0;
    if (is_sent && next.sa_handler == SIG_IGN) return;
    // A handler that came after us has us for its predecessor, to which it may hand on what we hand to it.
    const bool came_round = passing_on.load() == pthread_self() && instruction != Instruction::kIsSaved;
    if (came_round || next.sa_handler == SIG_DFL || next.sa_handler == SIG_IGN)
        return die_of(signal, is_sent || instruction == Instruction::kIsSaved);
    passing_on.store(pthread_self());
    if (next.sa_flags & SA_SIGINFO) {
        next.sa_sigaction(signal, info, context);
    } else {
        next.sa_handler(signal);
    }
    passing_on.store({});
}

void on_signal(int signal, siginfo_t* info, void* context) {
    const int saved_errno = errno;
    Fault fault;
    const Verdict verdict = look_at(signal, info, fault);
    if (verdict == Verdict::kNotOurs) {
        pass_on(signal, info, context, Instruction::kFaultsAgain);
    } else if (verdict == Verdict::kLost && raw_signals.load()) {
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
    if (sigaction(signal, &ours, nullptr) != 0)
        throw std::system_error(errno, std::generic_category(), "installing the fault handler");
}

void make_scratch_file() {
    if (scratch_file.load() >= 0) return;
    const int fd = memfd_create("bequest-scratch", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(kScratchBytes)) != 0)
        throw std::system_error(errno, std::generic_category(), "making scratch memory");
    scratch_file.store(fd);
    pthread_atfork(nullptr, nullptr, unlock_in_child);
}

}  // namespace

WindowLock::WindowLock() : taken_(lock_window()) {}
WindowLock::~WindowLock() {
    if (taken_) unlock_window();
}

void guard_window(const AddressSpace* space) {
    if (space) make_scratch_file();
    {
        const WindowLock lock;
        guardian.store(getpid());
        guarded.store(space);
        scratch_count = 0;
    }
    if (space) stand_first_in_line();
}

void tell_faults_to(TellLanguage tell) { tell_language.store(tell); }

void stand_first_in_line() {
    const WindowLock lock;
    for (int signal : kSignals) install(signal);
}

void pass_raw_signals(bool raw) { raw_signals.store(raw); }

bool peek_fault(Fault& fault) {
    const WindowLock lock;
    const Record* record = record_of(pthread_self());
    if (record) fault = record->fault;
    return record != nullptr;
}

bool take_fault(Fault& fault) {
    const WindowLock lock;
    Record* record = record_of(pthread_self());
    if (!record) return false;
    fault = record->fault;
    record->taken = true;
    return true;
}

void adopt_fault(const Fault& fault) {
    const WindowLock lock;
    write_record(pthread_self(), fault);
}

bool has_scratch() { return scratch_count.load(std::memory_order_relaxed) > 0; }

bool has_scratch(uint64_t start, uint64_t end) {
    for (size_t i = 0; i < scratch_count; i++)
        if (start < scratch[i].end && scratch[i].start < end) return true;
    return false;
}

std::vector<ScratchRange> scratch_ranges() { return {scratch, scratch + scratch_count}; }

void forget_scratch() {
    row = 0;
    if (!has_scratch()) return;
    scratch_count = 0;
    fallocate(scratch_file.load(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
              static_cast<off_t>(kScratchBytes));
}

}  // namespace bequest
