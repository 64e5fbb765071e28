// Cross-entropy over a vocabulary, with the gradient of the hidden rows in the same call.
//
// Rows go through in chunks. Threads take the vocabulary's segments, of which there are as many on
// every machine, so that no bit depends on the number of threads; then what the segments of a row
// have is added up in order, and softmax's division, in float32, comes last.
#pragma once

#include <omp.h>

#include "cross_entropy_part.h"

namespace gw {

constexpr index chunk_rows = 256;
constexpr index segments = 8;

struct Lost {
    float* losses;
    std::uint8_t* correct;  // whether the target is the argmax
    float* grad;            // of each row's loss, (rows, inputs), or none
};

// The partial sums of all segments for a chunk of rows.
class Partials {
   public:
    Partials(index inputs, bool grad) : inputs_(inputs), grad_(grad) {
        static thread_local Scratch room;
        numbers_ = room.room<float>(segments * size());
    }

    Partial of(index segment) const {
        float* first = numbers_ + segment * size();
        return {first, first + chunk_rows, grad_ ? first + 2 * chunk_rows : nullptr};
    }

    // What row `row` of the chunk has lost.
    void add_up(const Head& head, index row, index target, float own, const Lost& lost) const {
        float highest = -INFINITY, total = 0, scales[segments];
        for (index s = 0; s < segments; ++s) highest = std::max(highest, of(s).highest[row]);
        for (index s = 0; s < segments; ++s) {
            scales[s] = std::exp(of(s).highest[row] - highest);
            total += scales[s] * of(s).sums[row];
        }
        *lost.losses = std::log(total) + highest - own;
        *lost.correct = own >= highest;
        for (index j = 0; grad_ && j < inputs_; j += lanes) {
            __m512 sum = _mm512_setzero_ps();
            for (index s = 0; s < segments; ++s)
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(of(s).grad + row * inputs_ + j),
                                      _mm512_set1_ps(scales[s]), sum);
            const __m512 right = load_bf16(head.weight + target * head.ld + j);
            _mm512_storeu_ps(lost.grad + j, _mm512_sub_ps(
                                                _mm512_div_ps(sum, _mm512_set1_ps(total)), right));
        }
    }

   private:
    index size() const { return chunk_rows * (2 + (grad_ ? inputs_ : 0)); }

    index inputs_;
    bool grad_;
    float* numbers_;
};

template <class Isa>
void cross_entropy(const Head& head, const Rows& x, const index* targets, const Lost& lost) {
    const Partials partials(head.inputs, lost.grad != nullptr);
    const index chunks = (x.count + chunk_rows - 1) / chunk_rows;
    float own[chunk_rows];
#pragma omp parallel
    for (index c = 0; c < chunks; ++c) {
        const auto [top, bottom] = share(x.count, c, chunks);
        const Rows here{x.values + top * x.ld, x.ld, bottom - top};
#pragma omp for schedule(dynamic)
        for (index s = 0; s < segments; ++s) {
            const Range part = share(head.outputs / input_step, s, segments);
            sum_segment<Isa>(head, here, {part.first * input_step, part.last * input_step},
                             targets + top, partials.of(s), own);
        }
#pragma omp for
        for (index row = top; row < bottom; ++row)
            partials.add_up(head, row - top, targets[row], own[row - top],
                            {lost.losses + row, lost.correct + row,
                             lost.grad ? lost.grad + row * head.inputs : nullptr});
    }
}

}  // namespace gw
