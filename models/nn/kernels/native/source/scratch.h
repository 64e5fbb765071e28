// Memory of a thread that is kept from call to call, so that pages are touched once.
#pragma once

#include <cstdlib>

#include "common.h"

namespace gw {

class Scratch {
   public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    // Room for `count` items; what was there before is lost.
    template <class T>
    T* room(index count) {
        const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (bytes > size_) {
            std::free(data_);
            data_ = std::aligned_alloc(64, bytes);
            size_ = bytes;
        }
        return static_cast<T*>(data_);
    }

   private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace gw
