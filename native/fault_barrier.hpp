// What happens when this process touches rack memory that it believes to be its own and that is gone.
//
// Theory of operation. Memory can be lost while a process has it open: stolen, and then fenced by its agent
// (write-protected through userfaultfd: SIGBUS; or closed by an injected mprotect: SIGSEGV), or failed (its
// file cut short, its pages poisoned or punched out: SIGBUS). The signal arrives in the middle of an
// instruction. The handler puts scratch memory there, so that the instruction and the C code around it can
// end; it records the fault for the thread; and it tells the language above, which raises an exception in
// that thread as soon as it can. What was read is nothing, and what was written is dropped: the exception
// says so.
//
// Only pages that the address space believes to be open, or knows to be lost, are dealt with. Any other
// fault, a stray pointer into memory that was granted away among them, goes to whoever had the signal before.
//
// Why a handler may do that. These faults are synchronous: the thread was executing a load or store to a rack
// address, so it was not inside malloc, not inside this library (which touches rack memory nowhere while it
// holds the window lock) and not inside the interpreter's own critical sections. The window lock is therefore
// free or held by another thread, which will let go of it without touching rack memory. Nothing here
// allocates.
//
// As soon as the exception is made, the scratch memory vanishes (scratch.hpp), so that each touch of lost
// memory that a program makes raises anew, in whichever thread.
//
// Where the signal says that the hardware has lost the page (BUS_MCEERR_AR), that is noted besides: nobody
// else knows of it, and the language above is to report it to the rack, whose other processes may own its
// neighbours. BUS_MCEERR_AO, of which only those hear who have asked the kernel for it (PR_MCE_KILL), says so
// of a page that nobody is touching. It interrupts any instruction, so it is noted without a lock, no scratch
// memory is laid, and the lifeline's thread has it reported. Whoever touches the page later faults.
//
// A process may be fenced for a theft that comes to nothing, or be touching memory that is about to be
// stolen. So while the table says that a write-protected page is still ours, the thread waits in the handler:
// until the protection is lifted, and then the store is done as if nothing had happened, or until the word
// has changed, and then the memory is lost. What was closed by mprotect is not waited for: it may have
// failed.
//
// A system call that is given a lost address does not fault, it fails with EFAULT: an OSError in Python.
#pragma once

#include <pthread.h>

#include <cstdint>

#include "scratch.hpp"

namespace bequest {

class AddressSpace;

struct Fault {
    uint64_t address = 0;
    FaultKind kind = FaultKind::kFailed;
    int signal = 0;
    int code = 0;  // si_code
    pthread_t thread = {};
};

// Held while the address space of this process changes, and by the handler while it looks at it.
class WindowLock {
public:
    WindowLock();
    ~WindowLock();
    WindowLock(const WindowLock&) = delete;

private:
    bool taken_;  // false if this thread had it already
};

// Who knows the table, and can say in the handler whose memory is.
class Deeds {
public:
    virtual bool is_ours(uint64_t address) const = 0;

protected:
    ~Deeds() = default;

private:
    friend class DeedsList;
    Deeds* next_ = nullptr;
};
void ask_deeds(Deeds& deeds);
void ask_deeds_no_more(Deeds& deeds);

// Longer than a fence may take (FENCE_TIMEOUT in limits.py), for then the Rack MMU has it lifted.
constexpr int64_t kFencePatience_ns = 20'000'000'000;
void have_patience(int64_t patience_ns);  // other than that

// Called in the handler, on the thread that faulted, without the window lock.
using TellLanguage = void (*)(const Fault& fault);

// Guards the window of this address space from here on; nullptr: of none. The first call installs the
// handler.
void guard_window(const AddressSpace* space);
void tell_faults_to(TellLanguage tell);

// Whoever has installed a handler after us gets the faults that are not ours, instead of all of them. Asked
// for whenever a view is made, and now and then (lookout.hpp).
void stand_first_in_line();

// Keeps this process from pages that it believes to be open, if `is_stale` says that they are somebody
// else's, asked under the window lock. What it believes does not change: who touches them faults as at any
// other fence. On any thread.
void close_stale(uint64_t address, uint64_t nbytes, bool (*is_stale)(void* what), void* what);

// Opens again what this process believes to be open, if `is_ours` says so, asked under the window lock before
// and after: what has moved on is closed. Where that does not help it is mapped again, if that is allowed.
// False if it cannot be done. On any thread.
enum class Mending { kOpen, kMapAgain };
bool open_ours(uint64_t address, uint64_t nbytes, bool (*is_ours)(void* what), void* what, Mending mending);

// The paper's raw signal (section 3.2): no exception; SIGBUS goes to whoever has a handler for it, and kills
// who has none. When that handler runs, there is scratch memory under the address, and it may return.
void pass_raw_signals(bool raw);

// The first fault of a row of the calling thread that nobody has taken. False if there is none.
bool take_fault(Fault& fault);
// Makes it the calling thread's, who speaks for one that cannot. The next one of that thread begins a new
// row.
void adopt_fault(const Fault& fault);

// What the hardware has lost, as far as nobody has taken it. Notes are few; beyond that the page is noted
// when it is touched again.
struct HardwareError {
    uint64_t address = 0;
    uint64_t nbytes = 0;
};
bool take_hardware_error(HardwareError& error);
// Calls the language, on the calling thread, if there is anything to be taken: of an early warning no
// exception tells. It must not wait.
void tell_hardware_errors();
void tell_hardware_errors_to(void (*tell)());

// All windows of scratch memory have been mapped over: the rows of faults are over.
void end_rows();

}  // namespace bequest
