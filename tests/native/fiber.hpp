// A fiber: a stack of its own on which one operation runs until the explorer lets another one run.
//
// Fibers are made once and used for every schedule: a body returns, or is unwound by an exception, and the
// next one starts on the same stack. The sanitizers are told of every switch, or they would take another
// fiber's stack for an overflow (ASan) or two fibers for one thread (TSan).
#pragma once

#include <ucontext.h>

#include <functional>
#include <memory>

namespace bequest::tests {

class Fiber {
public:
    Fiber() = default;  // the one that runs already: the thread's own stack
    explicit Fiber(Fiber* home);
    ~Fiber();
    Fiber(const Fiber&) = delete;

    // What runs at the next switch to this fiber; when it ends, `home` goes on.
    std::function<void()> body;
    static void switch_between(Fiber& from, Fiber& to);

private:
    static void enter(unsigned low, unsigned high);
    void arrived();

    static constexpr size_t kStackBytes = 256 << 10;
    Fiber* home_ = nullptr;
    std::unique_ptr<unsigned char[]> stack_;
    ucontext_t context_;
    const void* stack_bottom_ = nullptr;  // as the sanitizers want to know it
    size_t stack_bytes_ = 0;
    void* fake_stack_ = nullptr;
    void* thread_ = nullptr;
};

}  // namespace bequest::tests
