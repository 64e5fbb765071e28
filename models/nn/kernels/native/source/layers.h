// Layers of a plain Llama with low-rank updates, op behind op, and their gradients.
//
// A caller that asks for one op at a time does so from cold caches: what it does in between takes
// several times as long as elsewhere, while the other cores wait.
#pragma once

#include <utility>

#include "attempt.h"
#include "attend.h"
#include "pointwise.h"
#include "project_gradient.h"

namespace gw {

// Records are laid out as the caller does, in eight bytes each.
struct Product {
    Layer layer;
    bf16* inner;
    index inner_size;
};

struct Norm {
    const void* gain;
    index gain_is_float;
    double epsilon;

    // normed = norm(x + added), and the sum.
    void forward(const bf16* x, const bf16* added, index rows, index width, bf16* sum,
                 bf16* normed, float* rstd) const {
        gw_norm_forward_avx512(x, width, added, width, sum, gain, 0, gain_is_float,
                               static_cast<float>(epsilon), rows, width, normed, rstd);
    }

    // The gradient of the sum from those of its norm and of itself.
    void backward(const bf16* grad, const bf16* passed, const bf16* sum, const float* rstd,
                  index rows, index width, bf16* result) const {
        gw_norm_backward_avx512(grad, width, passed, width, sum, width, rstd, gain, 0,
                                gain_is_float, rows, width, result, nullptr, 0);
    }
};

struct Llama {
    Product heads, output, gate_up, down;
    Norm second, next;   // before the feed-forward part, and behind the layer
    const bf16* normed;  // what the first product reads
    bf16 *turned, *seen;
    float* logs;  // of attention
    bf16* middle;  // the stream between its parts, and its norm
    float* middle_rstd;
    bf16 *middle_normed, *gates;
    bf16* stream;  // behind the layer, and its norm
    float* rstd;
    bf16* next_normed;
};

// The stream's rows, how their heads are turned and who sees whom.
struct HeadRows {
    index rows, query_heads, kv_heads, size;
    float scale;
    Sequences sequences;
    const bf16 *cosines, *sines;

    index all_heads() const { return query_heads + 2 * kv_heads; }
    Attention<bf16> attention(const bf16* heads) const {
        return {heads, all_heads() * size, query_heads, kv_heads, size, scale};
    }
    void turn(const bf16* heads, float direction, bf16* turned) const {
        gw_rotate_avx512(heads, all_heads() * size, cosines, sines, rows, all_heads(),
                         query_heads + kv_heads, size, direction, turned);
    }
};

// Pieces of one room, one behind the other, which last until a thread asks for others.
class Pieces {
   public:
    explicit Pieces(index numbers) {
        static thread_local Scratch room;
        next_ = room.room<bf16>(numbers);
    }
    bf16* take(index numbers) { return std::exchange(next_, next_ + numbers); }

   private:
    bf16* next_;
};

template <class Isa>
void forward(const Product& product, const bf16* x, index rows, bf16* y) {
    project_forward<Isa>(product.layer, {x, product.layer.inputs, rows}, product.inner, y);
}

// Lets `count` layers follow each other from the stream x on.
template <class Isa>
void layers_forward(const Llama* layers, index count, const bf16* x, const HeadRows& s) {
    const index rows = s.rows, width = layers->heads.layer.inputs;
    const index inner_width = layers->down.layer.inputs, area = s.all_heads() * s.size;
    Pieces pieces(rows * (width + inner_width + area));
    bf16 *y = pieces.take(rows * width), *inner = pieces.take(rows * inner_width);
    bf16* heads = pieces.take(rows * area);
    for (const Llama* l = layers; l != layers + count; ++l) {
        forward<Isa>(l->heads, l->normed, rows, heads);
        s.turn(heads, 1, l->turned);
        attend_forward<Isa>(s.attention(l->turned), s.sequences, l->seen, l->logs);
        forward<Isa>(l->output, l->seen, rows, y);
        l->second.forward(x, y, rows, width, l->middle, l->middle_normed, l->middle_rstd);
        forward<Isa>(l->gate_up, l->middle_normed, rows, l->gates);
        gw_swiglu_forward_avx512(l->gates, 2 * inner_width, rows, inner_width, inner);
        forward<Isa>(l->down, inner, rows, y);
        l->next.forward(l->middle, y, rows, width, l->stream, l->next_normed, l->rstd);
        x = l->stream;
    }
}

// Goes back through `count` layers from the gradients of the last one's stream and its norm, down
// to the product `first`, four of each layer being counted; before all of them is -1, where
// `result` and `result_normed` are given.
template <class Isa>
void layers_backward(const Llama* layers, index count, index first, const HeadRows& s,
                     const bf16* passed, const bf16* grad, bf16* result, bf16* result_normed) {
    static thread_local Scratch pulled_room;
    const index rows = s.rows, width = layers->heads.layer.inputs;
    const index inner_width = layers->down.layer.inputs;
    const index most = std::max(inner_width, s.all_heads() * s.size);
    Pieces pieces(rows * (3 * width + 2 * most));
    bf16 *behind = pieces.take(rows * width), *between = pieces.take(rows * width);
    bf16 *normed = pieces.take(rows * width), *wide = pieces.take(rows * most);
    bf16* inner = pieces.take(rows * most);
    for (index l = count; l-- > 0 && 4 * l + 3 >= first;) {
        const Llama& own = layers[l];
        // dx, if anything below is wanted; says so.
        const auto back = [&](index place, const Product& product, const bf16* dy, const bf16* x,
                              bf16* dx) {
            const bool goes_on = 4 * l + place > first;
            const Layer& layer = product.layer;
            project_backward<Isa>(layer, {dy, layer.outputs, rows}, {x, layer.inputs, rows},
                                  product.inner, pulled_room.room<bf16>(product.inner_size),
                                  goes_on ? dx : nullptr);
            return goes_on;
        };
        own.next.backward(grad, passed, own.stream, own.rstd, rows, width, behind);
        if (own.down.layer.count)
            gw_swiglu_forward_avx512(own.gates, 2 * inner_width, rows, inner_width, inner);
        if (!back(3, own.down, behind, inner, wide)) return;
        gw_swiglu_backward_avx512(wide, inner_width, own.gates, 2 * inner_width, rows, inner_width,
                                  own.gates);  // which nobody reads again
        if (!back(2, own.gate_up, own.gates, own.middle_normed, normed)) return;
        bf16* target = l || !result ? between : result;
        own.second.backward(normed, behind, own.middle, own.middle_rstd, rows, width, target);
        if (!back(1, own.output, target, own.seen, wide)) return;
        attend_backward<Isa>(s.attention(own.turned),
                             {own.seen, wide, s.query_heads * s.size, own.logs, inner}, s.sequences);
        s.turn(inner, -1, wide);
        bf16* target_normed = l || !result ? normed : result_normed;
        if (!back(0, own.heads, wide, own.normed, target_normed)) return;
        passed = target, grad = target_normed;
    }
}

}  // namespace gw

using namespace gw;

GW_API void GW_FORM(layers_forward)(const Llama* layers, index count, const bf16* x, index rows,
                                    index query_heads, index kv_heads, index size, float scale,
                                    const index* bounds, const index* parents, index sequences,
                                    const bf16* cosines, const bf16* sines) {
    attempt([&] {
        layers_forward<Isa>(layers, count, x,
                            {rows, query_heads, kv_heads, size, scale,
                             {bounds, parents, sequences}, cosines, sines});
    });
}

GW_API void GW_FORM(layers_backward)(const Llama* layers, index count, index first, index rows,
                                     index query_heads, index kv_heads, index size, float scale,
                                     const index* bounds, const index* parents, index sequences,
                                     const bf16* cosines, const bf16* sines, const bf16* passed,
                                     const bf16* grad, bf16* result, bf16* result_normed) {
    attempt([&] {
        layers_backward<Isa>(layers, count, first,
                             {rows, query_heads, kv_heads, size, scale,
                              {bounds, parents, sequences}, cosines, sines},
                             passed, grad, result, result_normed);
    });
}
