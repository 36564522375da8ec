// CRC-32C of whole pages (heap/checksum.hpp has that of anything).
//
// One stream of `crc32` instructions waits three cycles for each of them; four pages side by side keep the
// processor busy, and need no arithmetic to be put together again. It is then as fast as memory is.
#pragma once

#include <cstdint>

namespace bequest {

// One for each page. With `checksum.hpp`'s table where the processor has no such instruction.
void sum_pages(const void* pages, uint64_t count, uint32_t* sums);

// The same. False, and no sums, if the memory under the pages is gone, as that of a file is which somebody
// has cut: where reading it would be a SIGBUS. On any thread.
bool sum_pages_if_there(const void* pages, uint64_t count, uint32_t* sums);

}  // namespace bequest
