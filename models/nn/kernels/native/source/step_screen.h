// Which tokens of a row may be its likeliest, by a head in 8 bits and a bound on what that loses.
//
// A few inputs, those in which hidden states are large, are multiplied in bfloat16, the others by
// integers. With t g for the integers of a row, s q for those of a token and e for what is left:
//   |h w - t g s q| = |e_h w + t g e_w| <= |e_h| |w| + |t g| |e_w|
// and where logits are products of what h and w are rounded to, with |h_r - h| <= lost and
// |w_r - w| <= slack |w|:
//   |h_r w_r - h w| <= (lost + slack (|h| + lost)) |w|
// A token whose bound does not reach what another one has at the least is not the likeliest. The
// logits of the rest are computed as all are elsewhere, so the answer is the same, to the bit.
#pragma once

#ifdef __AVX512VNNI__
#include "step_screen_tiles.h"
#include "step_screen_vectors.h"
#else
#include "step_screen_avx2.h"
#endif
#include "step_state.h"

namespace gw::stepping {

#ifdef __AVX512VNNI__
template <class Isa>
using ScreenProducts = std::conditional_t<Isa::works_aside, TileScreen<Isa>, VectorScreen>;
#else
template <class Isa>
using ScreenProducts = VectorScreen;
#endif

// Finds candidates of all rows among this thread's panels.
template <class Isa>
void screen_all(State& state, const ScreenedRows& given, Candidates* candidates) {
    using Products = ScreenProducts<Isa>;
    static thread_local Fetching<Isa> ahead;
    Products products;
    std::for_each_n(candidates, state.b.wanted, [](Candidates& own) { own.clear(); });
    const Screen& screen = state.m.screen;
    const index panels = state.m.vocabulary / panel_width, rows = state.b.wanted;
    const index pieces = (panels + Products::most_panels - 1) / Products::most_panels;
    const index blocks = (rows + Products::most_rows - 1) / Products::most_rows;
    const auto at = [&](index panel) {
        return static_cast<const char*>(screen.panels) + panel * screen.stride;
    };
    state.team.each(state.thread, pieces, [&](index piece, bool more) {
        const Range own = share(panels, piece, pieces);
        ahead.clear();
        if (more) {
            const Range next = share(panels, piece + 1, pieces);
            ahead.add(at(next.first), (next.last - next.first) * screen.stride);
        }
        ahead.spread(blocks * Products::calls(screen, own.last - own.first));
        for (index b = 0; b < blocks; ++b) {
            const auto [top, bottom] = share(rows, b, blocks);
            const auto take = [&, top = top](index r, index p, Floats value, Floats bound) {
                Candidates& found = candidates[top + r];
                const Floats at_most = value + bound;
                if (!any(not_below(at_most, splat(found.bar)))) return;
                found.add(own.first + p, largest(at_most), largest(value - bound));
            };
            products.screen(bottom - top, own.last - own.first, screen, at(own.first),
                            given.from(screen, top), ahead, take);
        }
    });
}

// Whether a screen may tell the likeliest tokens: adapters leave the head as it is.
template <class Isa>
bool may_screen(const Model& m, const Batch& b) {
    const auto changes = [](const Group& group) {
        const Place& head = group.adapter->head;
        return head.weight || head.rank || head.output_scale || head.bias;
    };
    return b.likeliest && m.screen.panels && b.wanted <= ScreenProducts<Isa>::most_wanted &&
           std::none_of(b.wanted_groups, b.wanted_groups + b.wanted_group_count, changes);
}

// The likeliest token of a row among some candidates, or among all tokens if there are too many.
template <class Isa>
index likeliest_of(const State& state, const bf16* x, const Candidates* candidates, bool known) {
    constexpr bool far = Isa::works_aside;  // read once: what panels widen to is not kept
    typename Isa::Shaped shaped;
    alignas(64) float sums[panel_width];
    Leader leader;
    leader.clear();
    const Weight head = state.head();
    const WholeRows rounded = head.rounded(x);
    const bool widens = head.widening<Isa>() == Widening::before;
    bf16* const wide = widens ? wide_room(1, head.inputs) : nullptr;
    const auto take = [&](index panel) {
        if (widens) widen(head, {panel, panel + 1}, wide);
        const Factor factor{x, 1, {panel, panel + 1}, sums, wide, widens, rounded};
        multiply_weight<Isa, far>(shaped, head, factor, Nothing{}, Nothing{});
        leader.take(load(sums), panel * panel_width);
    };
    float bar = -__builtin_inff();
    for (int t = 0; t < state.team.size; ++t) {
        const Candidates& found = candidates[t * state.b.wanted];
        bar = std::max(bar, found.bar);
        known = known && found.count <= Candidates::most;
    }
    if (!known)
        for (index panel = 0; panel < head.outputs / panel_width; ++panel) take(panel);
    else
        for (int t = 0; t < state.team.size; ++t) {
            const Candidates& found = candidates[t * state.b.wanted];
            for (index c = 0; c < found.count; ++c)
                if (found.most_of[c] >= bar) take(found.panels[c]);
        }
    return likeliest(&leader, 1, 1);
}

// The likeliest token of each wanted row.
template <class Isa>
void compute_likeliest(State& state) {
    const auto& [m, b, s, team, thread] = state;
    const ScreenedRows given{s.screened.data(), s.exact.data(), s.coarse.data()};
    const Weight head = state.head();
    const Range own = share(b.wanted, thread, team.size);
    const auto hidden = [&](index n) { return b.hidden + b.wanted_rows[n] * m.hidden; };
    for (index n = own.first; n < own.last; ++n)
        s.known[n] = lay_out(m.screen, hidden(n), head.rounded(hidden(n)).lost(),
                             given.from(m.screen, n));
    team.meet();
    screen_all<Isa>(state, given, s.candidates.data() + thread * b.wanted);
    team.meet();
    for (index n = own.first; n < own.last; ++n)
        b.likeliest[b.targets[n]] =
            likeliest_of<Isa>(state, hidden(n), s.candidates.data() + n, s.known[n]);
}

}  // namespace gw::stepping
