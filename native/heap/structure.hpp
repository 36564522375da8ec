// Struct: named fields of fixed types, in a heap.
//
// Theory of operation. One allocation: a header, the layout as text, then a word for each field. A number is
// its word, so to change it is to change one word. Bytes and text lie in a block of their own, and the word
// is a Reference to it (0: there are none): another value is another block, made aside, and the word is
// swung. Both happen at once, or with the transaction under way.
//
// The layout, a line of name and type for each field, is kept for whoever opens it later with another one in
// mind: the object's seed is its length and its checksum.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "object.hpp"

namespace bequest {

struct StructLayout {
    std::string text;  // "count int\nlabel str\n"
    std::vector<ValueType> types;

    explicit StructLayout(std::string text);  // throws HeapMisuse if it says something else
    uint64_t seed() const;
};

class Struct {
public:
    // The one of this name, or a new one, for which `begin` then is called, within the transaction: all words
    // are 0.
    Struct(Heap& heap, std::string_view name, const StructLayout& layout,
           const std::function<void(Struct&)>& begin);
    // Throws CorruptHeap if none is there, or if it is not of this layout.
    Struct(Heap& heap, uint64_t address, const StructLayout& layout);

    // The layout of the one that lies there.
    static StructLayout layout_of(const Heap& heap, uint64_t address);

    Heap& heap() const { return *heap_; }
    uint64_t address() const { return address_; }
    const std::vector<ValueType>& types() const { return types_; }

    uint64_t word(uint64_t field) const { return words_[field]; }
    void set_word(uint64_t field, uint64_t value);  // of a number
    // Good until the field is changed.
    std::string_view bytes(uint64_t field) const;
    void set_bytes(uint64_t field, std::string_view value);

    void destroy();  // frees everything, within a transaction; the root is the caller's to remove
    void for_each_block(const std::function<void(uint64_t)>& visit) const;

private:
    static uint64_t make(Heap& heap, const StructLayout& layout);
    bool is_reference(uint64_t field) const { return types_[field] >= ValueType::kBytes; }
    uint64_t make_text(std::string_view value) const;

    Heap* heap_;
    uint64_t address_;
    std::vector<ValueType> types_;
    uint64_t* words_;
};

}  // namespace bequest
