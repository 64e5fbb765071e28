// AdamW (Loshchilov and Hutter, arXiv 1711.05101) in one pass over memory, and the norms of
// gradients, which are float32 or bfloat16.
#include <omp.h>

#include <cmath>

#include "rounded.h"
#include "vector.h"

using namespace gw;

namespace {

struct AdamW {
    float shrink;                                // of gradients
    float mean_gain, square_gain, square_decay;  // gains are of what is new
    float rate, root;                            // with the corrections of both moments
    float epsilon, kept;                         // of values, by their own decay
};

template <class Number>
struct Moved {
    float* values;
    const Number* gradient;
    float *mean, *square;

    void ask_for() const {
        for (const float* each : {values, mean, square}) __builtin_prefetch(each, 1);
        __builtin_prefetch(gradient);
    }
    Moved from(index at) const { return {values + at, gradient + at, mean + at, square + at}; }
};

// Returns the new values of `lanes` numbers.
template <class Number>
Floats move(const AdamW& how, const Moved<Number>& it) {
    const Floats g = read(it.gradient) * splat(how.shrink), was = load(it.mean);
    const Floats m = fma(g - was, splat(how.mean_gain), was);
    const Floats v = fma(g * g, splat(how.square_gain), load(it.square) * splat(how.square_decay));
    const Floats below = fma(_mm512_sqrt_ps(v), splat(how.root), splat(how.epsilon));
    const Floats moved = fnma(splat(how.rate), m / below, load(it.values) * splat(how.kept));
    store(it.mean, m);
    store(it.square, v);
    store(it.values, moved);
    return moved;
}

// Some numbers by a copy; what is behind them stays as it is.
template <class Number>
void move_some(const AdamW& how, const Moved<Number>& it, index count, bf16* rounded) {
    float numbers[3][lanes] = {};
    Number gradient[lanes] = {};
    bf16 halves[lanes];
    float* const places[] = {it.values, it.mean, it.square};
    for (int n = 0; n < 3; ++n) std::copy_n(places[n], count, numbers[n]);
    std::copy_n(it.gradient, count, gradient);
    store_bf16(halves, move<Number>(how, {numbers[0], gradient, numbers[1], numbers[2]}));
    for (int n = 0; n < 3; ++n) std::copy_n(numbers[n], count, places[n]);
    if (rounded) std::copy_n(halves, count, rounded);
}

template <class Number>
void move_all(const AdamW& how, const Moved<Number>& all, index count, bf16* rounded) {
    constexpr index step = 2 * lanes, ahead = 8 * step;
    const index whole = count / step;
#pragma omp parallel
    {
        const Range own = share(whole, omp_get_thread_num(), omp_get_num_threads());
        const Rounded target(rounded, count);
        for (index at = own.first * step; at < own.last * step; at += step) {
            for (const index more : {index{0}, lanes}) all.from(at + ahead + more).ask_for();
            const Floats first = move(how, all.from(at));
            const Floats second = move(how, all.from(at + lanes));
            if (rounded) target.put(at, first, second);
        }
    }
    for (index at = whole * step; at < count; at += lanes)
        move_some(how, all.from(at), std::min(lanes, count - at), rounded ? rounded + at : nullptr);
}

// The norm of every run of `length` numbers; the last one may be shorter.
template <class Number>
void norms(const Number* values, index count, index length, float* target) {
    constexpr index step = 4 * lanes;
#pragma omp parallel for schedule(static)
    for (index run = 0; run < (count + length - 1) / length; ++run) {
        const index first = run * length, last = std::min(count, first + length);
        Floats sums[4] = {zeros(), zeros(), zeros(), zeros()};
        const auto add = [&](const Number* numbers) {
            for (int n = 0; n < 4; ++n) {
                const Floats x = read(numbers + n * lanes);
                sums[n] = fma(x, x, sums[n]);
            }
        };
        const index whole = first + (last - first) / step * step;
        for (index at = first; at < whole; at += step) add(values + at);
        Number rest[step] = {};
        std::copy(values + whole, values + last, rest);
        add(rest);
        target[run] = std::sqrt(sum((sums[0] + sums[1]) + (sums[2] + sums[3])));
    }
}

}  // namespace

// Moves `count` numbers; `rounded` may be none.
#define GW_ADAMW(kind, Number)                                                                    \
    GW_API void gw_adamw_##kind##_avx512(                                                         \
        float* values, const Number* gradient, float* mean, float* square, bf16* rounded,         \
        index count, float shrink, float mean_gain, float square_gain, float square_decay,        \
        float rate, float root, float epsilon, float kept) {                                      \
        move_all<Number>(                                                                         \
            {shrink, mean_gain, square_gain, square_decay, rate, root, epsilon, kept},            \
            {values, gradient, mean, square}, count, rounded);                                    \
    }                                                                                             \
    GW_API void gw_norms_##kind##_avx512(const Number* values, index count, index length,         \
                                         float* target) {                                         \
        norms(values, count, length, target);                                                     \
    }

GW_ADAMW(bf16, bf16)
GW_ADAMW(f32, float)
