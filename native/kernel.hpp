// What the kernel offers that older headers do not name, and what it refuses, as an exception.
#pragma once

#include <sys/mman.h>

#include <system_error>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000  // Linux 4.17
#endif

namespace bequest {

[[noreturn]] inline void fail(const char* what, int error) {
    throw std::system_error(error, std::generic_category(), what);
}

}  // namespace bequest
