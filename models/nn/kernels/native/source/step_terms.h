// What each row's adapter adds to a piece of a product.
#pragma once

#include "step_piece.h"

namespace gw::stepping {

// The low-rank inputs of one site: inner (rows, ld) = scale * (x down^T), for the rows of groups.
struct Inner {
    bf16* values;
    index ld;
};

// `site_of(adapter)` names the `Down`; the threads must meet afterwards.
template <class Isa, class SiteOf>
void compute_inner(int thread, int threads, const Group* groups, index count, const bf16* x,
                   index inputs, Inner inner, SiteOf&& site_of) {
    index turn = 0;
    for (index g = 0; g < count; ++g) {
        const Down& down = site_of(*groups[g].adapter);
        for (index top = groups[g].first; top < groups[g].last; top += most_block)
            for (index p = 0; p < down.ranks / panel_width; p += most_panels) {
                if (turn++ % threads != thread) continue;
                const index panels = std::min(most_panels, down.ranks / panel_width - p);
                const auto put = [&](index r, index q, Floats sum) {
                    const index column = (p + q) * panel_width;
                    store_bf16(inner.values + (top + r) * inner.ld + column,
                               sum * load(down.scales + column));
                };
                multiply_piece<Isa>(x + top * inputs, inputs,
                                    std::min(most_block, groups[g].last - top),
                                    down.packed + p * panel_width * inputs, inputs, panels, put);
            }
    }
}

// Asks for what a term adds to 16 outputs.
inline void fetch_term(const Place& term, index first) {
    for (index n = 0; n < term.rank * panel_width; n += 32)
        _mm_prefetch(term.up + first * term.rank + n, _MM_HINT_T1);
}

// Applies the terms of the groups' adapters to one panel of a piece of these rows, which read x,
// and fetches what they add to some outputs later.
template <class PlaceOf>
void apply_terms(Piece& piece, index panel, Range rows, Output output, Output later, Rows x,
                 const Group* groups, index count, Inner inner, PlaceOf&& place_of) {
    for (index g = 0; g < count; ++g) {
        const Range own = common(rows, {groups[g].first, groups[g].last});
        if (own.first >= own.last) continue;
        if (later.place >= 0) fetch_term(place_of(*groups[g].adapter, later.place), later.first);
        const Place& term = place_of(*groups[g].adapter, output.place);
        const index skipped = own.first - rows.first;
        if (term.weight)
            Vectors::multiply<1>(x.at(own.first), x.size, own.last - own.first,
                                 term.weight + output.first * x.size, x.size,
                                 [&](index r, index, Floats sum) {
                                     store(piece.at(skipped + r, panel), sum);
                                 });
        if (term.rank)
            Vectors::multiply<1>(inner.values + own.first * inner.ld + term.first, inner.ld,
                                own.last - own.first, term.up + output.first * term.rank, term.rank,
                                [&](index r, index, Floats sum) {
                                    float* target = piece.at(skipped + r, panel);
                                    store(target, load(target) + sum);
                                });
        if (!term.output_scale && !term.bias) continue;
        const Floats scale =
            term.output_scale ? load(term.output_scale + output.first) : splat(1.0f);
        const Floats bias = term.bias ? load(term.bias + output.first) : zeros();
        for (index r = skipped; r < own.last - rows.first; ++r)
            store(piece.at(r, panel), fma(piece.load(r, panel), scale, bias));
    }
}

}  // namespace gw::stepping
