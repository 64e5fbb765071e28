// The threads of one parallel region: work in pieces that whoever is free takes, and a barrier.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>

#include "common.h"

namespace gw::stepping {

class Team {
   public:
    explicit Team(int size) : size(size) {}

    const int size;

    // Does work(i) once for every i below `count`, by all threads together, and waits for the end.
    template <class Work>
    void each(index count, Work&& work) {
        for (index i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
        meet();
    }

    // Waits for all threads. A neighbour on the same core gets it after a while of spinning.
    void meet() {
        const unsigned seen = turn.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            next.store(0, std::memory_order_relaxed);
            turn.store(seen + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn.load(std::memory_order_acquire) == seen; ++spins)
            if (spins < patience)
                _mm_pause();
            else
                sched_yield();
    }

   private:
    static constexpr int patience = 2000;

    alignas(64) std::atomic<index> next{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<unsigned> turn{0};
};

}  // namespace gw::stepping
