// A token of each row of logits: a number from [0, 1) inverts the row's distribution.
//
// Rows are drawn by themselves, in an order of sums that depends on nothing but the row.
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "vector.h"

namespace gw {

struct Draw {
    float temperature;  // 0 takes the likeliest token
    float top_p;        // below 1, the mass of the nucleus that is drawn from
    float uniform;
};

class Row {
   public:
    // Takes logits; not `finite` unless all of them are finite numbers.
    void read(const float* logits, index count) {
        source = logits, size = count;
        Floats top = splat(-__builtin_inff()), check = zeros();
        for (index i = 0; i < size; i += lanes) {
            const Floats part = at(i);
            top = larger(top, part);
            check = fma(part, zeros(), check);
        }
        highest = largest(top);
        finite = sum(check) == 0;
    }

    index draw(const Draw& how) {
        if (!finite) return -1;
        if (how.temperature <= 0) return std::find(source, source + size, highest) - source;
        weigh(how.temperature);
        return how.top_p < 1 ? draw_nucleus(how.top_p, how.uniform) : draw_whole(how.uniform);
    }

   private:
    static constexpr index group = 64;

    // Sixteen logits from `i` on; where there are no more, the lowest number.
    Floats at(index i) const {
        if (i + lanes <= size) return load(source + i);
        alignas(64) float rest[lanes];
        std::fill_n(rest, lanes, std::numeric_limits<float>::lowest());
        std::copy_n(source + i, size - i, rest);
        return load(rest);
    }

    void weigh(float temperature) {
        weights.resize(padded_to(size, group));
        sums.resize(weights.size() / group);
        total = 0;
        for (std::size_t g = 0; g < sums.size(); ++g) {
            Floats here = zeros();
            for (index i = g * group; i < index(g + 1) * group; i += lanes) {
                const Floats below = i < size ? (at(i) - splat(highest)) / splat(temperature)
                                              : splat(-__builtin_inff());
                const Floats weight = exponential(below);
                store(weights.data() + i, weight);
                here = here + weight;
            }
            total += sums[g] = sum(here);
        }
    }

    // Where the running sum passes `uniform` of the whole; rounding may leave that at the very end,
    // then the last token that weighs something.
    index draw_whole(double uniform) const {
        const double target = uniform * total;
        double running = 0;
        std::size_t g = 0;
        for (; g + 1 < sums.size() && running + sums[g] <= target; ++g) running += sums[g];
        index last = 0;
        for (index i = g * group; i < size; ++i) {
            if (weights[i] > 0) last = i;
            running += weights[i];
            if (running > target) break;
        }
        return last;
    }

    // From the smallest set of likeliest tokens with mass `top_p`; of those that weigh as much as
    // the least of them, the first are in it. Source: arXiv 1904.09751 section 3.1.
    index draw_nucleus(double top_p, double uniform) {
        find_likely((1 - top_p) * total / static_cast<double>(size));
        const auto [least, above] = find_least(top_p * total);
        double equals = std::max(1.0, std::ceil((top_p * total - above) / least));
        const double target = uniform * (above + equals * least);
        double running = 0;
        index last = 0;
        for (const index i : likely) {
            if (weights[i] < least || (weights[i] == least && equals-- <= 0)) continue;
            last = i;
            running += weights[i];
            if (running > target) break;
        }
        return last;
    }

    // All that weigh less than `share` weigh less together than what a nucleus leaves out.
    void find_likely(double share) {
        const float least = static_cast<float>(share / 2);  // rounding does not matter then
        likely.clear();
        for (std::size_t g = 0; g < sums.size(); ++g) {
            if (sums[g] < least) continue;
            for (index i = g * group; i < std::min(size, index(g + 1) * group); ++i)
                if (weights[i] >= least) likely.push_back(i);
        }
    }

    struct Edge {
        float least;
        double above;  // the mass of all that weigh more
    };

    // The weight at which the running sum of the heaviest reaches `mass`, found digit by digit of
    // its bits: weights are sorted by them.
    Edge find_least(double mass) {
        std::uint32_t known = 0;
        double above = 0;
        for (const auto& [shift, width] : {std::pair{20, 11}, {9, 11}, {0, 9}}) {
            double by_digit[1 << 11] = {};
            for (const index i : likely) {
                const auto bits = std::bit_cast<std::uint32_t>(weights[i]);
                if (bits >> (shift + width) == known)
                    by_digit[bits >> shift & ((1u << width) - 1)] += weights[i];
            }
            std::uint32_t digit = 0;
            double heavier = above;
            for (std::uint32_t d = (1u << width); d-- > 0;) {
                if (!by_digit[d]) continue;
                digit = d, above = heavier;
                heavier += by_digit[d];
                if (heavier >= mass) break;
            }
            known = known << width | digit;
        }
        return {std::bit_cast<float>(known), above};
    }

    const float* source = nullptr;
    index size = 0;
    float highest = 0;
    bool finite = false;
    std::vector<float> weights, sums;  // of tokens, and of groups of them
    double total = 0;
    std::vector<index> likely;
};

// Draws a token of each row of (rows, vocabulary) logits; -1 where these are not numbers.
inline void draw(const float* logits, index rows, index vocabulary, const Draw* draws,
                 index* tokens) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (index n = 0; n < rows; ++n) {
        static thread_local Row row;
        row.read(logits + n * vocabulary, vocabulary);
        tokens[n] = row.draw(draws[n]);
    }
}

}  // namespace gw
