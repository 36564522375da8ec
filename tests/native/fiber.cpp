#include "fiber.hpp"

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace bequest::tests {

namespace {
Fiber* left = nullptr;  // who switched to the fiber that runs now
}

Fiber::Fiber(Fiber* home) : home_(home), stack_(new unsigned char[kStackBytes]) {
    stack_bottom_ = stack_.get();
    stack_bytes_ = kStackBytes;
#if defined(__SANITIZE_THREAD__)
    thread_ = __tsan_create_fiber(0);
#endif
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::enter), 2, static_cast<unsigned>(self),
                static_cast<unsigned>(self >> 32));
}

Fiber::~Fiber() {
#if defined(__SANITIZE_THREAD__)
    if (stack_) __tsan_destroy_fiber(thread_);
#endif
}

void Fiber::enter(unsigned low, unsigned high) {
    auto* self = reinterpret_cast<Fiber*>(uintptr_t{high} << 32 | low);
    self->arrived();
    for (;;) {
        self->body();
        switch_between(*self, *self->home_);
    }
}

void Fiber::switch_between(Fiber& from, Fiber& to) {
    left = &from;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_bottom_, to.stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
    if (!from.stack_) from.thread_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to.thread_, 0);
#endif
    swapcontext(&from.context_, &to.context_);
    from.arrived();
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, &left->stack_bottom_, &left->stack_bytes_);
#endif
}

}  // namespace bequest::tests
