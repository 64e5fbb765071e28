// The likeliest token of each row, found while the logits are computed, which then nobody stores.
#pragma once

#include "vector.h"

namespace gw::stepping {

// What leads among the logits that one thread has computed of a row, lane by lane.
struct Leader {
    alignas(64) float values[16], places[16];  // places are whole numbers, exact up to 2^24
    alignas(64) float check[16];                // 0 as long as all were numbers

    void clear() {
        store(values, splat(-__builtin_inff()));
        store(places, zeros());
        store(check, zeros());
    }

    // Takes the logits of 16 tokens from `first` on; of equals, the first token leads.
    void take(Floats logits, index first) {
        const Floats value = load(values), place = load(places);
        const Floats here = splat(static_cast<float>(first)) + counted();
        const Mask above = below(value, logits);
        const Floats leading = pick(above, logits, value), its = pick(above, here, place);
        const Floats earlier = pick(below(here, its), here, its);
        store(values, leading);
        store(places, pick(not_below(logits, leading), earlier, its));
        store(check, fma(logits, zeros(), load(check)));
    }

   private:
    static Floats counted() {
        alignas(64) static constexpr float count[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                        8, 9, 10, 11, 12, 13, 14, 15};
        return load(count);
    }
};

// The first of the largest logits of a row, or -1 if one of them is no finite number; the leaders
// of the threads are `stride` apart.
inline index likeliest(const Leader* leaders, index stride, int threads) {
    float value = -__builtin_inff(), place = 0, check = 0;
    for (int t = 0; t < threads; ++t) {
        const Leader& leader = leaders[t * stride];
        for (int n = 0; n < 16; ++n) {
            const float own = leader.values[n], its = leader.places[n];
            check += leader.check[n];
            if (own > value || (own == value && its < place)) value = own, place = its;
        }
    }
    return check == 0 ? static_cast<index>(place) : -1;
}

}  // namespace gw::stepping
