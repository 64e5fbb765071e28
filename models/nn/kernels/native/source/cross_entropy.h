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

// The partial sums of all segments for a chunk of rows.
class Partials {
   public:
    Partials(const Head& head, bool grad)
        : head_(head), segments_(std::max<index>(8, head.outputs / 4096)), grad_(grad) {
        static thread_local Scratch room;
        numbers_ = room.room<float>(segments_ * size());
    }

    index segments() const { return segments_; }

    Partial of(index segment) const {
        float* first = numbers_ + segment * size();
        return {first, first + chunk_rows, grad_ ? first + 2 * chunk_rows : nullptr};
    }

    // The loss of a row whose target has the logit `own`, whether none is larger, and the gradient
    // (inputs), or none.
    void add_up(index row, index target, float own, float& loss, std::uint8_t& correct,
                float* grad) const {
        float highest = lowest, total = 0;
        for (index s = 0; s < segments_; ++s) highest = std::max(highest, of(s).highest[row]);
        for (index s = 0; s < segments_; ++s) {
            float& scale = of(s).highest[row];  // which is not needed any more
            scale = std::exp(scale - highest);
            total += scale * of(s).sums[row];
        }
        loss = std::log(total) + highest - own;
        correct = own >= highest;
        for (index j = 0; grad_ && j < head_.inputs; j += lanes) {
            __m512 sum = _mm512_setzero_ps();
            for (index s = 0; s < segments_; ++s)
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(of(s).grad + row * head_.inputs + j),
                                      _mm512_set1_ps(of(s).highest[row]), sum);
            const __m512 mean = _mm512_div_ps(sum, _mm512_set1_ps(total));
            const __m512 right = load_bf16(head_.weight + target * head_.ld + j);
            _mm512_storeu_ps(grad + j, _mm512_sub_ps(mean, right));
        }
    }

   private:
    index size() const { return chunk_rows * (2 + (grad_ ? head_.inputs : 0)); }

    const Head& head_;
    index segments_;
    bool grad_;
    float* numbers_;
};

// Losses, whether the target is the argmax, and the gradient of each row's loss (or none).
template <class Isa>
void cross_entropy(const Head& head, const Rows& x, const index* targets, float* losses,
                   std::uint8_t* correct, float* grad) {
    const Partials partials(head, grad != nullptr);
    const index chunks = (x.count + chunk_rows - 1) / chunk_rows;
    const index segments = partials.segments();
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
            partials.add_up(row - top, targets[row], own[row - top], losses[row], correct[row],
                            grad ? grad + row * head.inputs : nullptr);
    }
}

}  // namespace gw
