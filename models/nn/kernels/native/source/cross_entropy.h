// Cross-entropy over a vocabulary, with the gradient of the hidden rows in the same call.
//
// Rows go through in chunks whose logits fit one buffer that is kept. The slopes of a row's logits,
// softmax - onehot, overwrite them as bfloat16, times the sum of their exponentials: softmax's
// division comes after the product, in float32, as does what averages rows.
#pragma once

#include <omp.h>

#include <cmath>

#include "ahead.h"
#include "pack.h"
#include "products.h"
#include "scratch.h"
#include "vector.h"

namespace gw {

struct Head {
    const bf16* weight;  // (outputs, inputs)
    index ld, outputs, inputs;
    const bf16* bias;  // or none
};

constexpr index chunk_rows = 192;
constexpr index vocabulary_block = 1024;  // of the hidden rows' gradient
constexpr index row_gap = 80;  // of logits: rows a power of two apart would share few cache lines

template <class Isa>
void compute_logits(const Head& head, const bf16* x, index ldx, index rows, Range panels,
                    float* logits, index ldl) {
    static thread_local Scratch room;
    const index stride = panel_width * head.inputs, most = Isa::group(head.inputs);
    bf16* packed = room.room<bf16>(most * stride);
    for_groups(panels, most, [&](index first, index count) {
        const index left = first * panel_width;
        pack_along(head.weight + left * head.ld, head.ld, count * panel_width, head.inputs,
                   head.inputs, stride, packed);
        const index next = left + count * panel_width;
        Ahead ahead(head.weight + next * head.ld, head.ld,
                    std::min(count, panels.last - first - count) * panel_width, head.inputs,
                    rows * count);
        const Operand given{x, ldx, packed, head.inputs, stride};
        Isa::multiply_group(count, rows, given, {}, [&](index row, index q, __m512 sum) {
            ahead();
            const index at = left + q * panel_width;
            if (head.bias) sum = _mm512_add_ps(sum, load_bf16(head.bias + at));
            _mm512_storeu_ps(logits + row * ldl + at, sum);
        });
    });
}

struct Loss {
    float value, sum;
};

// The loss of one row, and the sum of its logits' exponentials. With `slope` the logits become
// (softmax - onehot) * sum, bfloat16 from the same address on.
inline Loss lose(float* logits, index count, index target, bool slope, std::uint8_t& correct) {
    auto* half = reinterpret_cast<bf16*>(logits);
    __m512 most = _mm512_loadu_ps(logits), sums = _mm512_setzero_ps();
    for (index j = lanes; j < count; j += lanes)
        most = _mm512_max_ps(most, _mm512_loadu_ps(logits + j));
    const float highest = _mm512_reduce_max_ps(most), own = logits[target];
    for (index j = 0; j < count; j += lanes) {
        const __m512 e = exponential(
            _mm512_sub_ps(_mm512_loadu_ps(logits + j), _mm512_set1_ps(highest)));
        sums = _mm512_add_ps(sums, e);
        if (slope) store_bf16(half + j, e);
    }
    const float total = sum(sums);
    correct = own >= highest;
    if (slope) {
        const __m512 rest = _mm512_set1_ps(std::exp(own - highest) - total);
        const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rest));
        __builtin_memcpy(half + target, &rounded, sizeof(bf16));
    }
    return {std::log(total) + highest - own, total};
}

// grad (rows, inputs) = slopes (rows, outputs) @ weight / the row's sum, for a thread's share of the
// inputs.
template <class Isa>
void pull_hidden(const Head& head, const bf16* slopes, index lds, index rows, const float* sums,
                 Range panels, float* grad) {
    static thread_local Scratch room;
    const index left = panels.first * panel_width, count = panels.last - panels.first;
    for (index first = 0; first < head.outputs; first += vocabulary_block) {
        const index inputs = std::min(vocabulary_block, head.outputs - first);
        const index stride = panel_width * inputs;
        bf16* packed = room.room<bf16>(count * stride);
        pack_across(head.weight + first * head.ld + left, head.ld, count * panel_width, inputs,
                    inputs, stride, packed);
        const index next = first + inputs;
        const bool last = next == head.outputs;
        Ahead ahead(head.weight + next * head.ld + left, head.ld,
                    std::min(vocabulary_block, head.outputs - next), count * panel_width,
                    rows * count);
        multiply_all<Isa>(rows, {slopes + first, lds, packed, inputs, stride}, count,
                          [&](index row, index j, __m512 sum) {
                              ahead();
                              float* place = grad + row * head.inputs + left + j;
                              if (first) sum = _mm512_add_ps(_mm512_loadu_ps(place), sum);
                              if (last) sum = _mm512_div_ps(sum, _mm512_set1_ps(sums[row]));
                              _mm512_storeu_ps(place, sum);
                          });
    }
}

// Losses, whether the target is the argmax, and the gradient of each row's loss (or none).
template <class Isa>
void cross_entropy(const Head& head, const bf16* x, index ldx, index rows, const index* targets,
                   float* losses, std::uint8_t* correct, float* grad) {
    static thread_local Scratch room;
    const index chunks = (rows + chunk_rows - 1) / chunk_rows;
    const index ldl = head.outputs + row_gap;
    float* logits = room.room<float>(std::min(rows, chunk_rows) * ldl);
    float sums[chunk_rows];
#pragma omp parallel
    {
        const index which = omp_get_thread_num(), workers = omp_get_num_threads();
        for (index c = 0; c < chunks; ++c) {
            const auto [top, bottom] = share(rows, c, chunks);
            const index here = bottom - top;
            compute_logits<Isa>(head, x + top * ldx, ldx, here,
                                share(head.outputs / panel_width, which, workers), logits, ldl);
#pragma omp barrier
            const Range own = share(here, which, workers);
            for (index i = own.first; i < own.last; ++i) {
                const Loss loss = lose(logits + i * ldl, head.outputs, targets[top + i],
                                       grad != nullptr, correct[top + i]);
                losses[top + i] = loss.value;
                sums[i] = loss.sum;
            }
#pragma omp barrier
            if (grad)
                pull_hidden<Isa>(head, reinterpret_cast<const bf16*>(logits), 2 * ldl, here, sums,
                                 share(head.inputs / panel_width, which, workers),
                                 grad + top * head.inputs);
#pragma omp barrier
        }
    }
}

}  // namespace gw
