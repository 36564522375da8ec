#include "medium.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bequest {

#ifdef BEQUEST_STEP_HOOK
MediumRecorder* medium_recorder = nullptr;
#endif

#if defined(__x86_64__)

namespace {

// From best to oldest: clwb keeps the line in the cache, clflushopt does not wait for its predecessor.
__attribute__((target("clwb"))) void clwb_line(void* line) { _mm_clwb(line); }
__attribute__((target("clflushopt"))) void clflushopt_line(void* line) { _mm_clflushopt(line); }
void clflush_line(void* line) { _mm_clflush(line); }

using WriteBack = void (*)(void* line);
WriteBack best_write_back() {
    unsigned a = 7, b = 0, c = 0, d = 0;
    asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (b & 1u << 24) return clwb_line;
    return b & 1u << 23 ? clflushopt_line : clflush_line;
}
const WriteBack write_back_line = best_write_back();

}  // namespace

void Medium::write_back(const void* at, uint64_t nbytes) {
    const uint64_t start = reinterpret_cast<uint64_t>(at) / kLineBytes * kLineBytes;
    const uint64_t end = reinterpret_cast<uint64_t>(at) + nbytes;
    for (uint64_t line = start; line < end; line += kLineBytes)
        write_back_line(reinterpret_cast<void*>(line));
}

void Medium::wait_for_write_back() { _mm_sfence(); }

#elif defined(__aarch64__)

void Medium::write_back(const void* at, uint64_t nbytes) {
    const uint64_t start = reinterpret_cast<uint64_t>(at) / kLineBytes * kLineBytes;
    const uint64_t end = reinterpret_cast<uint64_t>(at) + nbytes;
    for (uint64_t line = start; line < end; line += kLineBytes) asm volatile("dc cvac, %0" ::"r"(line));
}

void Medium::wait_for_write_back() { asm volatile("dsb ish" ::: "memory"); }

#else
#error "Say how this processor writes a cache line back, or heaps in file memory will not survive losing it."
#endif

}  // namespace bequest
