// The two kinds of field that lie in memory which other processes read and write at the same time.
//
//   Shared<T>   takes part in the protocol: sequentially consistent, often compared and swapped
//   Guarded<T>  is written only by whoever has the owner word, cell or slot above it in hand; others may look
//               at any time and learn from that word whether what they saw was good. Never torn, and of no
//               order of its own, so it costs what a plain field does.
//
// The tests build the core with BEQUEST_STEP_HOOK: then every access calls a hook first, which is where
// a scheduler lets another process run or kills this one. The production build knows nothing of that.
#pragma once

#include <atomic>

namespace bequest {

#ifdef BEQUEST_STEP_HOOK
extern void (*read_hook)(const void* field);
extern void (*write_hook)(const void* field);
inline void before_access(const void* field, bool write) {
    if (auto* hook = write ? write_hook : read_hook) hook(field);
}

template <class T>
class Shared : public std::atomic<T> {
    using Base = std::atomic<T>;

public:
    T load(std::memory_order order = std::memory_order_seq_cst) const {
        before_access(this, false);
        return Base::load(order);
    }
    void store(T value, std::memory_order order = std::memory_order_seq_cst) {
        before_access(this, true);
        Base::store(value, order);
    }
    T operator=(T value) {
        store(value);
        return value;
    }
    T exchange(T value) {
        before_access(this, true);
        return Base::exchange(value);
    }
    bool compare_exchange_strong(T& expected, T desired) {
        before_access(this, true);
        return Base::compare_exchange_strong(expected, desired);
    }
    bool compare_exchange_weak(T& expected, T desired) {
        before_access(this, true);
        return Base::compare_exchange_weak(expected, desired);
    }
    T fetch_add(T value) {
        before_access(this, true);
        return Base::fetch_add(value);
    }
    T fetch_sub(T value) {
        before_access(this, true);
        return Base::fetch_sub(value);
    }
};
#else
inline void before_access(const void*, bool) {}

template <class T>
using Shared = std::atomic<T>;
#endif

template <class T>
class Guarded {
public:
    operator T() const {
        before_access(this, false);
        return value_.load(std::memory_order_relaxed);
    }
    T operator=(T value) {
        before_access(this, true);
        value_.store(value, std::memory_order_relaxed);
        return value;
    }
    Guarded& operator=(const Guarded& other) {
        *this = static_cast<T>(other);
        return *this;
    }

private:
    std::atomic<T> value_;
};

}  // namespace bequest
