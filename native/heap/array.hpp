// Array: rows of equal size, one behind the other, in a heap.
//
// Theory of operation. A header says how many rows there are, and where: in one block, which may have room
// for more. A row is added behind the last, where nobody looks, and made durable; then the word that counts
// them is changed: a shadow copy. If the block is full, a larger one is made aside, and both words change in
// one transaction.
//
// Rows that are there may be taken away by changing the count, but not within a transaction: what is added
// afterwards would lie upon them, and they could not come back. Then those that stay are copied instead.
//
// What a row is the users say, in a text that is kept with it.
#pragma once

#include <functional>
#include <string_view>

#include "object.hpp"

namespace bequest {

struct ArrayHeader {      // then the text
    ObjectHeader object;  // its seed: the text's length and checksum
    uint64_t row_bytes;   // checked
    uint64_t rows;        // checked
    uint64_t block;       // a Reference: of the rows
};

struct ArrayBlock {   // then the rows
    uint64_t nbytes;  // checked: room for so many
    uint64_t reserved;
};

class Array {
public:
    // The one of this name, whatever it holds, or a new one of so many rows, all zero.
    Array(Heap& heap, std::string_view name, std::string_view text, uint64_t row_bytes, uint64_t rows);
    Array(Heap& heap, uint64_t address);

    uint64_t address() const { return address_; }
    std::string_view text() const;
    uint64_t row_bytes() const;
    uint64_t rows() const;
    uint64_t nbytes() const { return rows() * row_bytes(); }
    unsigned char* data() const;  // where the rows are; nullptr if there are none

    void append(const void* rows, uint64_t count);
    void resize(uint64_t rows);  // new ones are zero
    void write(uint64_t offset, const void* bytes, uint64_t nbytes);
    void snapshot(uint64_t offset, uint64_t nbytes);  // what the user is going to change

    void destroy();  // frees everything, within a transaction; the root is the caller's to remove
    void for_each_block(const std::function<void(uint64_t)>& visit) const;

private:
    static uint64_t make(Heap& heap, std::string_view text, uint64_t row_bytes, uint64_t rows);
    static uint64_t make_block(Heap& heap, uint64_t nbytes);
    static void fill(Heap& heap, unsigned char* place, const void* bytes, uint64_t nbytes);
    ArrayHeader& header() const { return *header_; }
    ArrayBlock* block() const;
    uint64_t room() const;
    uint64_t require_size(uint64_t rows) const;
    void grow(uint64_t present, const void* added, uint64_t count);
    void give_back();
    void move(uint64_t kept, const void* added, uint64_t count, uint64_t room);
    void require_inside(uint64_t offset, uint64_t nbytes) const;

    Heap* heap_;
    uint64_t address_;
    ArrayHeader* header_;
};

}  // namespace bequest
