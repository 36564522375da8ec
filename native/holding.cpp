#include "holding.hpp"

#include <algorithm>
#include <cassert>

namespace bequest {

Holding::Holding(std::shared_ptr<Member> member, const Extent& extent)
    : member_(std::move(member)),
      address_(member_->attachment.address(extent)),
      nbytes_(member_->attachment.nbytes(extent)),
      pieces_{extent} {
    enter();
}

Holding::Holding(std::shared_ptr<Member> member) : member_(std::move(member)) { enter(); }

void Holding::enter() {
    place_ = member_->holdings.size();
    member_->holdings.push_back(this);
}

Holding::~Holding() {
    std::vector<Holding*>& holdings = member_->holdings;
    holdings[place_] = holdings.back();
    holdings[place_]->place_ = place_;
    holdings.pop_back();
}

// The last page of a span belongs to it whole: the user's length need not fill it, and a region of
// huge pages may have many pages behind its last byte.
Span Holding::pages_of(const Span& span) const {
    if (span.end != nbytes_) return span;
    uint64_t end = (span.end + kPageBytes - 1) / kPageBytes * kPageBytes;
    if (!pieces_.empty()) end = std::max(end, span_of(pieces_.back()).end);
    return {span.start, end};
}

bool Holding::owns(const Span& span) const {
    uint64_t covered = span.start;
    for (const Extent& piece : pieces_) {
        const Span s = span_of(piece);
        if (s.start > covered) break;
        covered = std::max(covered, s.end);
    }
    return covered >= span.end && (span.end > span.start || nbytes_ == 0 || !pieces_.empty());
}

std::vector<Span> Holding::remaining(const Span& within) const {
    std::vector<Span> spans;
    for (const Extent& piece : pieces_) {
        Span s = span_of(piece);
        s = {std::max(s.start, within.start), std::min({s.end, within.end, nbytes_})};
        if (s.start >= s.end) continue;
        if (!spans.empty() && spans.back().end == s.start) {
            spans.back().end = s.end;
        } else {
            spans.push_back(s);
        }
    }
    return spans;
}

void Holding::give_back(const Span& span) {
    for (size_t i = borrows_.size(); i-- > 0;) {
        if (borrows_[i].start != span.start || borrows_[i].end != span.end) continue;
        borrows_[i] = borrows_.back();
        borrows_.pop_back();
        return;
    }
}

size_t Holding::borrows_of(const Span& span) const {
    size_t count = 0;
    for (const Span& borrow : borrows_) count += borrow.overlaps(span);
    return count;
}

// Makes a piece begin at this offset, if one lies across it.
bool Holding::cut_at(uint64_t at) {
    for (size_t i = 0; i < pieces_.size(); i++) {
        const Span s = span_of(pieces_[i]);
        if (at <= s.start || at >= s.end) continue;
        const auto right = member_->attachment.split(pieces_[i], (at - s.start) / kPageBytes);
        if (!right) return false;
        pieces_.insert(pieces_.begin() + static_cast<std::ptrdiff_t>(i) + 1, *right);
        return true;
    }
    return true;
}

std::optional<Extent> Holding::take_out(const Span& span) {
    assert(span.start % kPageBytes == 0 && span.end % kPageBytes == 0 && span.start < span.end);
    if (!owns(span)) return std::nullopt;
    if (!cut_at(span.start) || !cut_at(span.end)) return std::nullopt;
    const auto inside = [&](const Extent& e) {
        const Span s = span_of(e);
        return s.start >= span.start && s.end <= span.end;
    };
    const auto first = std::find_if(pieces_.begin(), pieces_.end(), inside);
    assert(first != pieces_.end());
    Extent whole = *first;
    auto last = first + 1;
    for (; last != pieces_.end() && inside(*last); ++last) {
        if (!member_->attachment.merge(whole, *last)) break;
    }
    *first = whole;
    pieces_.erase(first + 1, last);
    const Span got = span_of(whole);
    if (got.start != span.start || got.end != span.end) return std::nullopt;
    pieces_.erase(first);
    return whole;
}

void Holding::put_in(const Extent& extent) {
    const auto at = std::find_if(pieces_.begin(), pieces_.end(),
                                 [&](const Extent& e) { return offset(e) > offset(extent); });
    pieces_.insert(at, extent);
}

uint64_t Holding::free_span(const Span& span) {
    const auto whole = take_out(span);
    if (!whole) return 0;
    const uint64_t bytes = whole->word.pages() * kPageBytes;
    try {
        return member_->attachment.free(*whole) ? bytes : 0;
    } catch (...) {
        put_in(*whole);
        throw;
    }
}

uint64_t Holding::free_all() {
    uint64_t bytes = 0;
    while (!pieces_.empty()) {
        const Extent piece = pieces_.back();  // freed before it is forgotten: freeing may throw
        if (member_->attachment.free(piece)) bytes += piece.word.pages() * kPageBytes;
        pieces_.pop_back();
    }
    return bytes;
}

}  // namespace bequest
