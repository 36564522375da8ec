#include "ptrace_fence.hpp"

#include <cerrno>
#include <exception>
#include <system_error>
#include <thread>

#if defined(__x86_64__)

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <future>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "doorbell.hpp"
#include "kernel.hpp"
#include "mappings.hpp"

namespace bequest {

namespace {

constexpr int64_t kPause_ns = 20'000;
constexpr int64_t kThreadTimeout_ns = 20'000'000;   // who cannot be stopped within that is passed over
constexpr int64_t kCallTimeout_ns = 2'000'000'000;  // for all that a stopped thread is made to do
constexpr int kSystemCallStop = SIGTRAP | 0x80;     // PTRACE_O_TRACESYSGOOD
constexpr char kSystemCall[] = {'\x0f', '\x05'};    // the instruction

bool is_event_stop(int status) { return status >> 16 == PTRACE_EVENT_STOP; }

// A thread of the victim, seized by the calling thread; given back as it was found by `release`.
class Tracee {
public:
    explicit Tracee(pid_t tid) : tid_(tid) {
        if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD) != 0) fail("tracing a thread", errno);
    }

    // False if it does not stop in time: it stays seized until the tracing thread ends.
    bool stop(int64_t timeout_ns) {
        if (ptrace(PTRACE_INTERRUPT, tid_, 0, 0) != 0) return false;
        const int64_t deadline = monotonic_ns() + timeout_ns;
        for (;;) {
            const auto status = wait_until(deadline);
            if (!status) return false;
            if (is_event_stop(*status)) return true;
            resume(PTRACE_CONT, WSTOPSIG(*status));  // a signal was on its way to it: it gets it
        }
    }

    // What was found is put back by `release`, which must follow whatever happens.
    void borrow() {
        request(PTRACE_GETREGS, nullptr, &found_, "reading a thread's registers");
        request(PTRACE_GETSIGMASK, mask_bytes(), &found_mask_, "reading a thread's signal mask");
        found_.rip = leave_critical_section(found_.rip);
        uint64_t all = ~0ull;
        request(PTRACE_SETSIGMASK, mask_bytes(), &all, "blocking a thread's signals");
        borrowed_ = true;
    }

    // Has the thread make a system call; its result.
    int64_t call(uint64_t instruction, uint64_t number, const PageRun& range, uint64_t argument) {
        user_regs_struct set = found_;
        set.rip = instruction;
        set.rax = number;
        set.orig_rax = ~0ull;  // whatever was interrupted is not to be started again now
        set.rdi = range.address;
        set.rsi = range.nbytes;
        set.rdx = argument;
        request(PTRACE_SETREGS, nullptr, &set, "setting a thread's registers");
        run_to_system_call_stop();
        run_to_system_call_stop();
        request(PTRACE_GETREGS, nullptr, &set, "reading a system call's result");
        return static_cast<int64_t>(set.rax);
    }

    // Registers are put back at a stop of this kind only: there, the kernel still looks whether a system call
    // has to be started again.
    void release() {
        if (borrowed_) {
            ptrace(PTRACE_INTERRUPT, tid_, 0, 0);
            resume(PTRACE_CONT, 0);
            for (int status = wait(); !is_event_stop(status); status = wait())
                resume(PTRACE_CONT, WSTOPSIG(status) == SIGSTOP ? SIGSTOP : 0);
            request(PTRACE_SETREGS, nullptr, &found_, "giving a thread its registers back");
            request(PTRACE_SETSIGMASK, mask_bytes(), &found_mask_, "giving a thread its signals back");
            borrowed_ = false;
        }
        ptrace(PTRACE_DETACH, tid_, 0, 0);
    }

    // A system call instruction to borrow: the one that the thread is waiting in, or one of the kernel's own
    // page.
    uint64_t find_system_call(pid_t os_pid) const {
        if (found_.orig_rax != ~0ull) {
            const long code = ptrace(PTRACE_PEEKTEXT, tid_, found_.rip - sizeof kSystemCall, 0);
            if (std::memcmp(&code, kSystemCall, sizeof kSystemCall) == 0)
                return found_.rip - sizeof kSystemCall;
        }
        const auto page = vdso_of(os_pid);
        std::vector<char> code(page ? page->nbytes : 0);
        if (page && read(os_pid, page->address, code.data(), code.size())) {
            const std::string_view text(code.data(), code.size());
            const size_t at = text.find(std::string_view(kSystemCall, sizeof kSystemCall));
            if (at != text.npos) return page->address + at;
        }
        fail("looking for a system call instruction in the process", ENOENT);
    }

private:
    static void* mask_bytes() { return reinterpret_cast<void*>(sizeof(uint64_t)); }

    template <class Data>
    void request(__ptrace_request what, void* address, Data* data, const char* doing) const {
        if (ptrace(what, tid_, address, data) == -1) fail(doing, errno);
    }

    void resume(__ptrace_request how, int signal) { ptrace(how, tid_, 0, static_cast<long>(signal)); }

    static bool read(pid_t pid, uint64_t address, void* to, size_t nbytes) {
        const iovec local{to, nbytes}, remote{reinterpret_cast<void*>(address), nbytes};
        return process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(nbytes);
    }

    static int checked(int status) {
        if (!WIFSTOPPED(status)) fail("waiting for a thread to stop", ESRCH);  // it has ended
        return status;
    }

    std::optional<int> wait_until(int64_t deadline) const {
        int status;
        for (;;) {
            const pid_t got = waitpid(tid_, &status, __WALL | WNOHANG);
            if (got == tid_) return checked(status);
            if (got < 0 && errno != EINTR) fail("waiting for a thread to stop", ESRCH);
            if (monotonic_ns() >= deadline) return std::nullopt;
            const timespec pause{0, kPause_ns};
            nanosleep(&pause, nullptr);
        }
    }

    // Without a deadline: it has been made to do something short, and must not be left in the middle of it.
    // Whoever asked for it does not wait as long (ptrace_close).
    int wait() const {
        int status;
        while (waitpid(tid_, &status, __WALL) != tid_)
            if (errno != EINTR) fail("waiting for a thread to stop", ESRCH);
        return checked(status);
    }

    void run_to_system_call_stop() {
        int signal = 0;
        for (;;) {
            resume(PTRACE_SYSCALL, signal);
            const int status = wait();
            if (WSTOPSIG(status) == kSystemCallStop) return;
            signal = 0;
            if (is_event_stop(status)) continue;
            if (WSTOPSIG(status) != SIGSTOP)  // all that can be blocked is: the call itself has caused it
                fail("having a thread make a system call", EFAULT);
            signal = SIGSTOP;
        }
    }

    // A restartable sequence may not go on after other code has run: the kernel would send it to its abort
    // handler.
    uint64_t leave_critical_section(uint64_t at) const {
        __ptrace_rseq_configuration about{};
        struct {
            uint32_t version, flags;
            uint64_t start, length, abort;
        } section;
        uint64_t pointer = 0;
        void* const size = reinterpret_cast<void*>(sizeof about);
        const long got = ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid_, size, &about);
        if (got < static_cast<long>(sizeof about) || about.rseq_abi_pointer == 0) return at;
        if (!read(tid_, about.rseq_abi_pointer + 8, &pointer, sizeof pointer) || pointer == 0) return at;
        if (!read(tid_, pointer, &section, sizeof section)) return at;
        return at - section.start < section.length ? section.abort : at;
    }

    pid_t tid_;
    user_regs_struct found_{};
    uint64_t found_mask_ = 0;
    bool borrowed_ = false;
};

std::vector<pid_t> threads_of(pid_t os_pid) {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/task", os_pid);
    std::vector<pid_t> threads;
    DIR* directory = opendir(path);
    if (!directory) fail("looking at a process's threads", errno == ENOENT ? ESRCH : errno);
    while (const dirent* entry = readdir(directory))
        if (const int tid = std::atoi(entry->d_name); tid > 0) threads.push_back(tid);
    closedir(directory);
    return threads;
}

// The pid is the one that the pidfd means as long as that has not ended; asked after seizing, it was then,
// too.
bool has_ended(int pidfd) {
    pollfd ended{pidfd, POLLIN, 0};
    return poll(&ended, 1, 0) != 0;
}

Tracee stop_any_thread(pid_t os_pid, int pidfd, int64_t deadline) {
    if (has_ended(pidfd)) fail("tracing a process", ESRCH);
    int error = ETIMEDOUT;
    for (const pid_t tid : threads_of(os_pid)) {
        const int64_t left = deadline - monotonic_ns();
        if (left <= 0) break;
        try {
            Tracee tracee(tid);
            if (has_ended(pidfd)) fail("tracing a process", ESRCH);
            if (tracee.stop(std::min(left, kThreadTimeout_ns))) return tracee;
        } catch (const std::system_error& trouble) {  // this one has ended, say
            error = trouble.code().value();
        }
    }
    fail("stopping a thread of the process", error);
}

void close_range(Tracee& tracee, uint64_t instruction, const PageRun& range) {
    const int64_t result = tracee.call(instruction, SYS_mprotect, range, PROT_NONE);
    if (result < 0) fail("mprotect in the process's name", static_cast<int>(-result));
}

// What is wanted of a process, kept by the thread that does it, and by whoever waits for that.
struct Closing {
    pid_t os_pid;
    int pidfd;  // our own
    std::vector<PageRun> ranges;
    std::promise<void> done;
    std::atomic<bool> given_up{false};

    ~Closing() { ::close(pidfd); }
};

void close_ranges(Tracee& tracee, const Closing& closing) {
    tracee.borrow();
    const uint64_t instruction = tracee.find_system_call(closing.os_pid);
    for (const PageRun& range : closing.ranges) {
        if (closing.given_up) fail("closing memory in the process's name", ETIMEDOUT);
        try {
            close_range(tracee, instruction, range);
        } catch (const std::system_error& trouble) {
            if (trouble.code().value() != ENOMEM) throw;  // else there is a gap: one by one what is mapped
            for (const PageRun& mapped : mappings_within(closing.os_pid, range))
                close_range(tracee, instruction, mapped);
        }
    }
}

void trace(const Closing& closing, int64_t timeout_ns) {
    Tracee tracee = stop_any_thread(closing.os_pid, closing.pidfd, monotonic_ns() + timeout_ns);
    try {
        close_ranges(tracee, closing);
    } catch (...) {
        tracee.release();
        throw;
    }
    try {
        tracee.release();
    } catch (const std::system_error& trouble) {  // it was done; another thread's fault has ended it since
        if (trouble.code().value() != ESRCH) throw;
    }
}

}  // namespace

// A thread that waits for the lock of its address space, which another may hold for ever, does not finish
// what it was made to do. It cannot be left alone then, for it has registers that are not its own; so the
// tracer goes on waiting, and we do not.
void ptrace_close(pid_t os_pid, int pidfd, std::span<const PageRun> ranges, int64_t timeout_ns) {
    const int own_pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
    if (own_pidfd < 0) fail("tracing a process", errno);
    const auto closing =
        std::make_shared<Closing>(os_pid, own_pidfd, std::vector(ranges.begin(), ranges.end()));
    std::future<void> done = closing->done.get_future();
    std::thread tracer([closing, timeout_ns] {
        try {
            trace(*closing, timeout_ns);
            closing->done.set_value();
        } catch (...) {
            closing->done.set_exception(std::current_exception());
        }
    });
    if (done.wait_for(std::chrono::nanoseconds(timeout_ns + kCallTimeout_ns)) ==
        std::future_status::timeout) {
        tracer.detach();
        closing->given_up = true;
        fail("having a thread of the process close its memory", ETIMEDOUT);
    }
    tracer.join();  // the process is traced until it has ended
    done.get();
}

}  // namespace bequest

#else

namespace bequest {

void ptrace_close(pid_t, int, std::span<const PageRun>, int64_t) {
    throw std::system_error(ENOSYS, std::generic_category(),
                            "fencing by ptrace is written for x86-64 only; on this processor there remain "
                            "userfaultfd and killing");
}

}  // namespace bequest

#endif
