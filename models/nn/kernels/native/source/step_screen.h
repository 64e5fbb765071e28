// Which tokens of a row may be its likeliest, by a head in 8 bits and a bound on what that loses.
//
// A few inputs, those in which hidden states are large, are multiplied in bfloat16, the others by
// integers. With t g for the integers of a row, s q for those of a token and e for what is left:
//   |h w - t g s q| = |e_h w + t g e_w| <= |e_h| |w| + |t g| |e_w|
// A token whose bound does not reach what another one has at the least is not the likeliest. The
// logits of the rest are computed as all are elsewhere, so the answer is the same, to the bit.
#pragma once

#include "step_state.h"

namespace gw::stepping {

constexpr index screen_head = 3 * panel_width * sizeof(float);  // scales, lost lengths, lengths

// Products of the integers of R rows and P panels, into (R, P, 16).
template <int R, int P, class Meanwhile>
void multiply_coarse(const Screen& screen, const char* panels, const ScreenedRows& given,
                     Meanwhile& meanwhile, std::int32_t* target) {
    __m512i sum[R][P];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sum[r][p] = _mm512_set1_epi32(given.rows[r].start);
    for (index k = 0; k < screen.coarse; k += 4) {
        __m512i w[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
            w[p] = _mm512_loadu_si512(panels + p * screen.stride + k * panel_width);
        meanwhile();
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            std::int32_t four;
            __builtin_memcpy(&four, given.coarse + r * screen.coarse + k, sizeof four);
            const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbusd_epi32(sum[r][p], w[p], x);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
            _mm512_store_si512(target + (r * P + p) * panel_width, sum[r][p]);
}

// Calls take(row, panel, value, bound) for R rows and P panels: 16 logits lie within 16 bounds.
template <int R, int P, class Meanwhile, class Take>
void screen_block(const Screen& screen, const char* panels, const ScreenedRows& given,
                  Meanwhile& meanwhile, const Take& take) {
    alignas(64) std::int32_t whole[R * P * panel_width];
    const char* exact = panels + screen_head;
    const char* coarse = exact + screen.exact * panel_width * sizeof(bf16);
    multiply_coarse<R, P>(screen, coarse, given, meanwhile, whole);
    for (int p = 0; p < P; ++p, panels += screen.stride, exact += screen.stride) {
        const auto* head = reinterpret_cast<const float*>(panels);
        const auto* w = reinterpret_cast<const bf16*>(exact);
        const Floats scale = load(head), lost = load(head + lanes), size = load(head + 2 * lanes);
        Floats sum[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            sum[r] = _mm512_cvtepi32_ps(_mm512_load_si512(whole + (r * P + p) * panel_width)) *
                     (scale * splat(given.rows[r].step));
        for (index k = 0; k < screen.exact; k += 2)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                sum[r] = _mm512_dpbf16_ps(sum[r], pair(given.exact + r * screen.exact + k),
                                          pairs(w + k * panel_width));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            take(r, p, sum[r],
                 fma(lost, splat(given.rows[r].length), size * splat(given.rows[r].left)));
    }
}

// The same for up to R rows.
template <int R, int P, class Meanwhile, class Take>
void screen_rows(index rows, const Screen& screen, const char* panels, const ScreenedRows& given,
                 Meanwhile& meanwhile, const Take& take) {
    if (rows == R)
        screen_block<R, P>(screen, panels, given, meanwhile, take);
    else if constexpr (R > 1)
        screen_rows<R - 1, P>(rows, screen, panels, given, meanwhile, take);
}

// Finds candidates of all rows among this thread's panels.
inline void screen_all(State& state, const ScreenedRows& given, Candidates* candidates) {
    static thread_local Stream ahead;
    std::for_each_n(candidates, state.b.wanted, [](Candidates& own) { own.clear(); });
    const Screen& screen = state.m.screen;
    const index panels = state.m.vocabulary / panel_width, rows = state.b.wanted;
    const index pieces = (panels + most_panels - 1) / most_panels;
    const index blocks = (rows + Avx512::most_rows - 1) / Avx512::most_rows;
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
        ahead.spread(blocks * screen.coarse / 4, false);
        for (index b = 0; b < blocks; ++b) {
            const auto [top, bottom] = share(rows, b, blocks);
            const auto take = [&](int r, int p, Floats value, Floats bound) {
                Candidates& found = candidates[top + r];
                const Floats at_most = value + bound;
                if (!not_below(at_most, splat(found.bar))) return;
                found.add(own.first + p, largest(at_most), largest(value - bound));
            };
            for_panels(own.last - own.first, [&](auto count) {
                screen_rows<Avx512::most_rows, count>(bottom - top, screen, at(own.first),
                                                      given.from(screen, top), ahead, take);
            });
        }
    });
}

// Whether a screen may tell the likeliest tokens: adapters leave the head as it is.
inline bool may_screen(const Model& m, const Batch& b) {
    const auto changes = [](const Group& group) {
        const Place& head = group.adapter->head;
        return head.weight || head.rank || head.output_scale || head.bias;
    };
    return b.likeliest && m.screen.panels &&
           std::none_of(b.wanted_groups, b.wanted_groups + b.wanted_group_count, changes);
}

// The likeliest token of a row among some candidates, or among all tokens if there are too many.
template <class Isa>
index likeliest_of(const State& state, const bf16* x, const Candidates* candidates, bool known) {
    typename Isa::Shaped shaped;
    alignas(64) float sums[panel_width];
    Leader leader;
    leader.clear();
    const Weight head = state.head();
    const auto take = [&](index panel) {
        const Factor factor{x, 1, {panel, panel + 1}, sums};
        multiply_weight<Isa, false>(shaped, head, factor, Nothing{}, Nothing{});
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
    const Range own = share(b.wanted, thread, team.size);
    const auto hidden = [&](index n) { return b.hidden + b.wanted_rows[n] * m.hidden; };
    for (index n = own.first; n < own.last; ++n)
        s.known[n] = lay_out(m.screen, hidden(n), given.from(m.screen, n));
    team.meet();
    screen_all(state, given, s.candidates.data() + thread * b.wanted);
    team.meet();
    for (index n = own.first; n < own.last; ++n)
        b.likeliest[b.targets[n]] =
            likeliest_of<Isa>(state, hidden(n), s.candidates.data() + n, s.known[n]);
}

}  // namespace gw::stepping
