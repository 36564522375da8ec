// The memory behind a slab, as the memory element's server handles it: populated ahead of use,
// collapsed to 2 MiB pages, copied between slabs. Every call may take long; none needs Python.
#pragma once

#include <cstdint>

namespace bequest {

// Makes [offset, offset + nbytes) of the file present, on 2 MiB pages if `huge` and the kernel can.
// Returns the bytes that are on 2 MiB pages. Throws std::system_error when memory cannot be had.
uint64_t warm_slab(int fd, uint64_t offset, uint64_t nbytes, bool huge);

void copy_pages(int source, uint64_t source_offset, int destination, uint64_t destination_offset,
                uint64_t nbytes);

}  // namespace bequest
