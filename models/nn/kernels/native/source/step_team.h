// The threads of one parallel region: each has its share of the work, and takes what others have
// left when it is done; and a barrier.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <vector>

#include "common.h"

namespace gw::stepping {

class Team {
   public:
    explicit Team(int size) : size(size), shares(size) {}

    const int size;

    // Does work(i, whether i + 1 is likely this thread's next) once for every i below `count`, by
    // all threads together. They must meet before the next such work.
    template <class Work>
    void each(int thread, index count, Work&& work) {
        for (int turn = 0; turn < size; ++turn) {
            const int owner = (thread + turn) % size;
            const auto [first, last] = share(count, owner, size);
            std::atomic<index>& taken = shares[owner].taken;
            for (index i; (i = first + taken.fetch_add(1, std::memory_order_relaxed)) < last;)
                work(i, !turn && i + 1 < last);
        }
    }

    // Waits for all threads. A neighbour on the same core gets it after a while of spinning.
    void meet() {
        const unsigned seen = turn.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            for (Share& share : shares) share.taken.store(0, std::memory_order_relaxed);
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

    struct alignas(64) Share {
        std::atomic<index> taken{0};
    };

    std::vector<Share> shares;
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<unsigned> turn{0};
};

}  // namespace gw::stepping
