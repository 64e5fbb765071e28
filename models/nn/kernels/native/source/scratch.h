// Memory that is kept from call to call, so that pages are touched once. It begins with a cache
// line: rows that straddle lines are read at half the speed.
#pragma once

#include <cstdlib>
#include <new>
#include <vector>

#include "common.h"

namespace gw {

template <class T>
struct LineAllocator {
    using value_type = T;

    LineAllocator() = default;
    template <class Other>
    LineAllocator(const LineAllocator<Other>&) {}

    T* allocate(std::size_t count) {
        return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}));
    }
    void deallocate(T* first, std::size_t) { ::operator delete(first, std::align_val_t{64}); }
    bool operator==(const LineAllocator&) const { return true; }
};

template <class T>
using Aligned = std::vector<T, LineAllocator<T>>;

class Scratch {
   public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    // Room for `count` items; what was there before is lost. Throws std::bad_alloc.
    template <class T>
    T* room(index count) {
        const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (bytes > size_) {
            std::free(data_);
            size_ = 0;
            data_ = std::aligned_alloc(64, bytes);
            if (!data_) throw std::bad_alloc();
            size_ = bytes;
        }
        return static_cast<T*>(data_);
    }

   private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace gw
