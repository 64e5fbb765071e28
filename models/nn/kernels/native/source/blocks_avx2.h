// The product of a few rows with a few packed panels by AVX2, which knows no bfloat16.
//
// Numbers are widened as they are read: an even one of a pair is shifted up, of an odd one the
// lower half is cleared; rows that many panels read are widened before. Each output element is one
// chain of fused products over the inputs, in order, whatever the number of rows or panels: a
// row's bits do not depend on its neighbours.
#pragma once

#include <immintrin.h>

#include "coded.h"
#include "operand.h"
#include "scratch.h"
#include "sum_block.h"
#include "vector.h"

namespace gw {

// The numbers of one input from a panel's next two inputs.
template <int Which>
[[gnu::always_inline]] inline Floats weights(const bf16* pairs) {
    const auto* source = reinterpret_cast<const __m256i*>(pairs);
    const auto widen = [](__m256i both) {
        const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
        return _mm256_castsi256_ps(Which ? _mm256_and_si256(both, upper)
                                         : _mm256_slli_epi32(both, 16));
    };
    return {widen(_mm256_loadu_si256(source)), widen(_mm256_loadu_si256(source + 1))};
}

template <int Which>
[[gnu::always_inline]] inline Floats weights(const std::int8_t* rows) {
    return load_int8(rows + Which * panel_width);
}

template <int Which>
[[gnu::always_inline]] inline Floats weights(const float* rows) {
    return load(rows + Which * panel_width);
}

// An operand's rows as float32 in `room`.
template <class Packed>
OperandOf<float, Packed> widen(const OperandOf<bf16, Packed>& given, index rows, float* room) {
    const index ldx = given.inputs;
    for (index r = 0; r < rows; ++r) {
        const bf16* row = given.x + r * given.ldx;
        index k = 0;
        for (; k + lanes <= ldx; k += lanes) store(room + r * ldx + k, load_bf16(row + k));
        for (; k < ldx; ++k) room[r * ldx + k] = to_float(row[k]);
    }
    return {room, ldx, given.panels, given.inputs, given.stride};
}

struct Avx2 {
    static constexpr int most_rows = 6;  // of a panel; its sums take 12 of 16 registers
    static constexpr int most_panels = 4;
    static constexpr int piece_panels = 4;  // of a step's product
    static constexpr index step = 2;  // inputs of an operand must be a multiple of this
    static constexpr index between = 16;  // inputs from one call of meanwhile() to the next

    template <class Packed>
    static constexpr Widening widening = std::is_same_v<Packed, Coded> ? Widening::before
                                                                       : Widening::none;
    static constexpr bool works_aside = false;  // leaving vectors to others
    struct Shaped {};

    template <int P, class Packed, class Store, class Meanwhile = Nothing>
    static void multiply(const bf16* x, index ldx, index rows, const Packed* panels, index inputs,
                         Store&& store, Meanwhile&& meanwhile = {}) {
        const OperandOf<bf16, Packed> given{x, ldx, panels, inputs, panel_width * inputs};
        multiply<P>(rows, given, {}, store, meanwhile);
    }

    // The sum over the inputs of two operands, `more` after `first`.
    template <int P, class Packed, class Store, class Meanwhile = Nothing>
    static void multiply(index rows, const OperandOf<bf16, Packed>& first, const Operand& more,
                         Store&& store, Meanwhile&& meanwhile = {}) {
        static thread_local Scratch room;
        float* wide = room.room<float>(most_rows * (first.inputs + more.inputs));
        for_blocks(rows, [&](index top, index count) {
            const auto one = widen(first.from(top), count, wide);
            const auto two = widen(more.from(top), count, wide + most_rows * first.inputs);
            multiply_block<P>(count, one, two,
                              [&](int r, int p, Floats sum) { store(top + r, p, sum); }, meanwhile);
        });
    }

    // The same of rows that are wide already.
    template <int P, class Packed, class Store>
    static void multiply(index rows, const OperandOf<float, Packed>& given, Store&& store) {
        for_blocks(rows, [&](index top, index count) {
            multiply_block<P>(count, given.from(top), OperandOf<float, bf16>{},
                              [&](int r, int p, Floats sum) { store(top + r, p, sum); }, Nothing{});
        });
    }

    // What `sum_block` calls.
    template <int R, int P, class Packed, class Meanwhile>
    [[gnu::always_inline]] static inline void add(const OperandOf<float, Packed>& given,
                                                  Floats (&sum)[R][P], Meanwhile& meanwhile) {
        const float* x = given.x;
        const Packed* panels = given.panels;
        const index ldx = given.ldx, stride = given.stride, inputs = given.inputs;
        for (index first = 0; first < inputs; first += between) {
            meanwhile();
            const index last = std::min(first + between, inputs);
            for (index k = first; k < last; k += 2) {
                add_input<0, R, P>(x + k, ldx, panels + k * panel_width, stride, sum);
                add_input<1, R, P>(x + k + 1, ldx, panels + k * panel_width, stride, sum);
            }
        }
    }

   private:
    // Rows beyond a multiple of `most_rows` are spread, so that no block is much smaller.
    template <class Act>
    static void for_blocks(index rows, Act&& act) {
        const index blocks = (rows + most_rows - 1) / most_rows;
        for (index b = 0; b < blocks; ++b) {
            const auto [top, bottom] = share(rows, b, blocks);
            act(top, bottom - top);
        }
    }

    // A single row takes all panels at once, for enough sums at a time; of more rows, a few take
    // one panel after another.
    template <int P, class Packed, class Put, class Meanwhile>
    static void multiply_block(index rows, const OperandOf<float, Packed>& first,
                               const OperandOf<float, bf16>& more, const Put& put,
                               Meanwhile&& meanwhile) {
        if (rows == 1)
            return sum_block<Avx2, 1, P>(
                first, more,
                [&](int, const Floats(&sums)[P]) {
#pragma GCC unroll 8
                    for (int p = 0; p < P; ++p) put(0, p, sums[p]);
                },
                meanwhile);
        for (int p = 0; p < P; ++p) {
            const auto one = first.panel(p);
            const auto two = more.panel(p);
            const auto put_here = [&](int r, const Floats(&sum)[1]) { put(r, p, *sum); };
            switch (rows) {
                case 6: sum_block<Avx2, 6, 1>(one, two, put_here, meanwhile); break;
                case 5: sum_block<Avx2, 5, 1>(one, two, put_here, meanwhile); break;
                case 4: sum_block<Avx2, 4, 1>(one, two, put_here, meanwhile); break;
                case 3: sum_block<Avx2, 3, 1>(one, two, put_here, meanwhile); break;
                case 2: sum_block<Avx2, 2, 1>(one, two, put_here, meanwhile); break;
            }
        }
    }

    template <int Which, int R, int P, class Packed>
    [[gnu::always_inline]] static inline void add_input(const float* x, index ldx,
                                                        const Packed* panels, index stride,
                                                        Floats (&sum)[R][P]) {
        Floats w[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) w[p] = weights<Which>(panels + p * stride);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m256 number = _mm256_broadcast_ss(x + r * ldx);
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sum[r][p] = fma({number, number}, w[p], sum[r][p]);
        }
    }
};

}  // namespace gw
