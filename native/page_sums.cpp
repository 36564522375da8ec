#include "page_sums.hpp"

#include <setjmp.h>
#include <signal.h>

#include <cerrno>
#include <mutex>

#include "checksum.hpp"
#include "kernel.hpp"
#include "layout.hpp"

namespace bequest {

namespace {

constexpr uint64_t kWordsOfPage = kPageBytes / sizeof(uint64_t);
constexpr uint64_t kLineWords = 8;
constexpr uint64_t kAheadWords = 64;  // fetched so far ahead, past the caches that the owner has filled

void four_pages(const uint64_t* pages, uint32_t* sums) {
    const uint64_t *a = pages, *b = a + kWordsOfPage, *c = b + kWordsOfPage, *d = c + kWordsOfPage;
    uint32_t x = ~0u, y = ~0u, z = ~0u, w = ~0u;
    for (uint64_t line = 0; line < kWordsOfPage; line += kLineWords) {
        for (const uint64_t* page : {a, b, c, d}) __builtin_prefetch(page + line + kAheadWords, 0, 0);
        for (uint64_t i = line; i < line + kLineWords; i++) {
            x = crc32c_word(x, a[i]);
            y = crc32c_word(y, b[i]);
            z = crc32c_word(z, c[i]);
            w = crc32c_word(w, d[i]);
        }
    }
    sums[0] = ~x, sums[1] = ~y, sums[2] = ~z, sums[3] = ~w;
}

// Where a thread goes on whose pages turn out to be gone. Nothing that needs a destructor lies between.
thread_local sigjmp_buf* way_out = nullptr;
struct sigaction before_us;

void on_bus_error(int signal, siginfo_t* info, void* context) {
    if (way_out) siglongjmp(*way_out, 1);
    if (before_us.sa_flags & SA_SIGINFO) {
        before_us.sa_sigaction(signal, info, context);
    } else if (before_us.sa_handler != SIG_DFL && before_us.sa_handler != SIG_IGN) {
        before_us.sa_handler(signal);
    } else {
        sigaction(signal, &before_us, nullptr);  // the instruction is executed again, and kills
    }
}

void catch_bus_errors() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction ours = {};
        ours.sa_sigaction = on_bus_error;
        ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigemptyset(&ours.sa_mask);
        if (sigaction(SIGBUS, &ours, &before_us) != 0) fail("installing a handler for SIGBUS", errno);
    });
}

}  // namespace

void sum_pages(const void* pages, uint64_t count, uint32_t* sums) {
    const auto* words = static_cast<const uint64_t*>(pages);
    for (; count >= 4; count -= 4, words += 4 * kWordsOfPage, sums += 4) four_pages(words, sums);
    for (; count > 0; count--, words += kWordsOfPage) *sums++ = crc32c(words, kPageBytes);
}

bool sum_pages_if_there(const void* pages, uint64_t count, uint32_t* sums) {
    catch_bus_errors();
    sigjmp_buf here;
    if (sigsetjmp(here, 0) != 0) {
        way_out = nullptr;
        return false;
    }
    way_out = &here;
    sum_pages(pages, count, sums);
    way_out = nullptr;
    return true;
}

}  // namespace bequest
