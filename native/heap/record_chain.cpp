#include "record_chain.hpp"

#include <algorithm>

#include "checksum.hpp"

namespace bequest {

namespace {

constexpr uint64_t kBlockBytesMin = 512, kBlockBytesMax = 64 << 10;
constexpr uint64_t kBlocksPerHeap = 64;  // at least, before the first segment is full

uint64_t words_of(uint64_t nbytes) { return (sizeof(ChainRecord) + rounded_up(nbytes, 8)) / 8; }
unsigned char* data_of(const ChainBlock& block, uint64_t words) {
    return reinterpret_cast<unsigned char*>(const_cast<ChainBlock*>(&block + 1)) + words * 8;
}
uint64_t crc_of(const ChainBlock& block) {
    return ~crc32c_word(crc32c_word(~0u, block.first_index), block.nbytes);
}
uint32_t crc_of(uint64_t index, uint32_t nbytes, const void* data) {
    return ~crc32c_more(crc32c_word(crc32c_word(~0u, index), nbytes), data, nbytes);
}

// Written, and flushed as far as it means anything yet.
uint64_t make_block(Heap& heap, uint64_t first_index, uint64_t nbytes_min) {
    const uint64_t wished =
        std::clamp(heap.segments()[0].nbytes / kBlocksPerHeap, kBlockBytesMin, kBlockBytesMax);
    const uint64_t address =
        heap.alloc(std::max(wished, nbytes_min + sizeof(ChainBlock)), Heap::Flushed::kByUser);
    ChainBlock block{0, first_index, heap.nbytes_of(address) - sizeof(ChainBlock), 0};
    block.crc = crc_of(block);
    heap.medium().copy(reinterpret_cast<void*>(address), &block, sizeof block);
    heap.medium().flush(reinterpret_cast<void*>(address), sizeof block);
    return address;
}

}  // namespace

uint64_t RecordChain::make(Heap& heap, ObjectKind kind, ValueType records) {
    const uint64_t block = make_block(heap, 0, 0);
    const uint64_t address = heap.alloc(sizeof(ChainHeader));
    const uint64_t nothing = ChainPlace{0, 0}.packed();
    const uint64_t reference = Reference::make(block).bits;
    const ChainHeader header{ObjectHeader::make(kind, static_cast<uint64_t>(records)), reference, reference,
                             nothing, nothing};
    heap.medium().copy(reinterpret_cast<void*>(address), &header, sizeof header);
    return address;
}

RecordChain::RecordChain(Heap& heap, std::string_view name, ObjectKind kind, ValueType records)
    : heap_(heap),
      name_(name),
      address_(find_or_make(heap, name, kind, [&](Heap& h) { return make(h, kind, records); })),
      header_(&heap.at<ChainHeader>(address_)) {
    header().object.check(kind, address_);
}

void RecordChain::raise_damaged(const char* what) const {
    raise<CorruptHeap>("the %s '%s' has %s", name_of(header().object.kind), name_.c_str(), what);
}

ChainBlock& RecordChain::block_at(uint64_t reference) const {
    const uint64_t address = heap_.follow(reference);
    auto& block = heap_.at<ChainBlock>(address);
    if (block.crc != crc_of(block)) raise_damaged("a damaged block");
    heap_.require(address, sizeof block + block.nbytes);
    return block;
}

uint64_t RecordChain::blocks_max() const { return heap_.nbytes() / kBlockBytesMin; }

ChainPlace RecordChain::place(uint64_t word, const ChainBlock& block) const {
    const ChainPlace place = ChainPlace::unpacked(word);
    if (!is_sound(word) || place.words > block.nbytes / 8) raise_damaged("a damaged beginning or end");
    return place;
}

uint64_t RecordChain::first_index() const {
    const ChainBlock& block = first_block();
    return block.first_index + place(header().first, block).records;
}

uint64_t RecordChain::end_index() const {
    const ChainBlock& block = block_at(header().last_block);
    return block.first_index + place(header().last, block).records;
}

uint64_t RecordChain::size() const {
    const uint64_t first = first_index(), end = end_index();
    if (first > end) raise_damaged("an end before its beginning");
    return end - first;
}

// --- adding ---------------------------------------------------------------------------------------

ChainPlace RecordChain::write(ChainBlock& block, ChainPlace at, std::string_view data) {
    const auto nbytes = static_cast<uint32_t>(data.size());
    const ChainRecord record{ChainRecord::packed(nbytes),
                             crc_of(block.first_index + at.records, nbytes, data.data())};
    unsigned char* there = data_of(block, at.words);
    heap_.medium().copy(there, &record, sizeof record);
    heap_.medium().copy(there + sizeof record, data.data(), data.size());
    heap_.medium().flush(there, sizeof record + data.size());
    return {at.records + 1, at.words + words_of(data.size())};
}

ChainBlock& RecordChain::add_block(const ChainBlock& last, uint64_t first_index, uint64_t nbytes_min) {
    const uint64_t address = make_block(heap_, first_index, nbytes_min);
    auto& next = const_cast<uint64_t&>(last.next);
    const uint64_t reference = Reference::make(address).bits;
    heap_.set({{&next, reference}, {&header().last_block, reference}});
    return heap_.at<ChainBlock>(address);
}

uint64_t RecordChain::append(std::span<const std::string_view> records) {
    ChainBlock* block = &block_at(header().last_block);
    ChainPlace end = place(header().last, *block);
    const uint64_t first = block->first_index + end.records;
    uint64_t words = end.words;
    for (const std::string_view record : records) {
        if (record.size() > kRecordBytesMax)
            raise<HeapMisuse>("a record has at most %lu bytes, not %lu", kRecordBytesMax, record.size());
        words += words_of(record.size());
    }
    std::optional<Transaction> transaction;
    if (words * 8 > block->nbytes) transaction.emplace(heap_);
    for (const std::string_view record : records) {
        if ((end.words + words_of(record.size())) * 8 > block->nbytes) {
            block = &add_block(*block, block->first_index + end.records, words_of(record.size()) * 8);
            end = {0, 0};
        }
        end = write(*block, end, record);
    }
    heap_.publish(header().last, end.packed());
    if (transaction) transaction->commit();
    return first;
}

// --- reading --------------------------------------------------------------------------------------

RecordChain::Cursor::Cursor(const RecordChain& chain, uint64_t index)
    : chain_(chain), block_(&chain.first_block()), blocks_left_(chain.blocks_max()) {
    const ChainPlace first = chain.place(chain.header().first, *block_);
    words_ = first.words;
    index_ = block_->first_index + first.records;
    const uint64_t end = chain.end_index(), wanted = std::min(index, end);
    while (pass_block(wanted)) {  // blocks of which nothing is wanted are passed over whole
    }
    if (wanted == end && block_->next == 0) {
        index_ = end;
        words_ = chain.place(chain.header().last, *block_).words;
    }
    while (index_ < wanted) pass();
}

// Goes to the next block, if that begins no later than with this index.
bool RecordChain::Cursor::pass_block(uint64_t wanted) {
    if (block_->next == 0) return false;
    const ChainBlock& next = chain_.block_at(block_->next);
    if (next.first_index > wanted) return false;
    if (next.first_index < index_ || blocks_left_-- == 0) chain_.raise_damaged("blocks out of order");
    block_ = &next;
    index_ = next.first_index;
    words_ = 0;
    return true;
}

// The one at the cursor, of which nothing but its length has been looked at.
const ChainRecord& RecordChain::Cursor::record() const {
    const auto& record = *reinterpret_cast<const ChainRecord*>(data_of(*block_, words_));
    if ((words_ + 1) * 8 <= block_->nbytes && record.sound() &&
        (words_ + words_of(record.nbytes())) * 8 <= block_->nbytes)
        return record;
    const uint64_t reached =
        block_->next == 0 ? chain_.end_index() : chain_.block_at(block_->next).first_index;
    raise<CorruptHeap>(
        "record %lu of the %s '%s' is damaged, and where it ends cannot be known: after it, records can be "
        "read from %lu on, and what lies before that can be dropped",
        index_, name_of(chain_.header().object.kind), chain_.name_.c_str(), reached);
}

const ChainRecord& RecordChain::Cursor::pass() {
    const ChainRecord& passed = record();
    words_ += words_of(passed.nbytes());
    index_++;
    return passed;
}

std::optional<std::string_view> RecordChain::Cursor::next() {
    if (index_ >= chain_.end_index()) return std::nullopt;
    while (pass_block(index_)) {
    }
    const ChainRecord& found = record();
    if (found.crc != crc_of(index_, found.nbytes(), &found + 1))
        raise<CorruptHeap>(
            "record %lu of the %s '%s' is damaged: those after it can be read from %lu on, and what lies "
            "before that can be dropped",
            index_, name_of(chain_.header().object.kind), chain_.name_.c_str(), index_ + 1);
    pass();
    return std::string_view(reinterpret_cast<const char*>(&found + 1), found.nbytes());
}

// --- dropping -------------------------------------------------------------------------------------

uint64_t RecordChain::drop_before(uint64_t index) {
    const uint64_t first = first_index();
    const Cursor cursor(*this, index);
    if (cursor.index_ <= first) return 0;
    const ChainPlace place{cursor.index_ - cursor.block_->first_index, cursor.words_};
    const uint64_t kept = Reference::make(reinterpret_cast<uint64_t>(cursor.block_)).bits;
    if (kept == header().first_block) {
        heap_.publish(header().first, place.packed());
        return cursor.index_ - first;
    }
    Transaction transaction(heap_);
    for (uint64_t block = header().first_block; block != kept; block = block_at(block).next)
        heap_.free_own(heap_.follow(block));
    heap_.set({{&header().first_block, kept}, {&header().first, place.packed()}});
    transaction.commit();
    return cursor.index_ - first;
}

void RecordChain::for_each_block(const std::function<void(uint64_t)>& visit) const {
    visit(address_);
    uint64_t last = 0, blocks = 0;
    for (uint64_t block = header().first_block; block != 0; block = block_at(block).next) {
        if (blocks++ > blocks_max()) raise_damaged("blocks that lead in a circle");
        visit(heap_.follow(block));
        last = block;
    }
    if (last != header().last_block) raise_damaged("a last block that is not its last");
}

void RecordChain::destroy() {
    std::vector<uint64_t> blocks;
    for_each_block([&](uint64_t block) { blocks.push_back(block); });
    for (uint64_t block : blocks) heap_.free_own(block);
}

}  // namespace bequest
