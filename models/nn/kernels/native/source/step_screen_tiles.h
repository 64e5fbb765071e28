// The products of a screen by tiles: see `step_screen.h`.
#pragma once

#include "step_screen_panel.h"
#include "tile_sums.h"

namespace gw::stepping {

// Rows and panels two tiles at a time. The integers of 32 rows stay in the first cache, and what
// tiles take is so little that only memory is waited for.
template <class Isa>
class TileScreen {
   public:
    static constexpr index most_rows = Isa::most_rows;
    static constexpr int most_panels = 4;
    static constexpr index most_wanted = std::numeric_limits<index>::max();

    // How often meanwhile() is called for a block of rows and some panels.
    static index calls(const Screen& screen, index panels) {
        return (panels + 1) / 2 * (screen.coarse / byte_step + screen.exact / Isa::step);
    }

    // Calls take(row, panel, value, bound) for a block of rows and some panels: 16 logits lie
    // within 16 bounds.
    template <class Meanwhile, class Take>
    void screen(index rows, index panels, const Screen& screen, const char* first,
                const ScreenedRows& given, Meanwhile& meanwhile, const Take& take) {
        shaped_.fit(rows);
        for (index p = 0; p < panels; p += 2) {
            const char* pair = first + p * screen.stride;
            const index across = std::min<index>(2, panels - p);
            if (across > 1)
                multiply<2>(rows, screen, pair, given, meanwhile);
            else
                multiply<1>(rows, screen, pair, given, meanwhile);
            for (index q = 0; q < across; ++q) {
                const ScreenedPanel panel(pair + q * screen.stride);
                for (index r = 0; r < rows; ++r) {
                    const index at = r * across_all + q * panel_width;
                    const Screened& row = given.rows[r];
                    take(r, p + q, panel.scaled(whole_ + at, row) + gw::load(exact_ + at),
                         panel.bound(row));
                }
            }
        }
    }

   private:
    using Tiles = typename Isa::Unit;
    static constexpr index byte_step = 64;  // integers of an operand must be a multiple of this
    static constexpr index across_all = 2 * panel_width;

    template <int P, class Meanwhile>
    void multiply(index rows, const Screen& screen, const char* panels, const ScreenedRows& given,
                  Meanwhile& meanwhile) {
        if (rows > 16)
            multiply_integers<P, true>(screen, panels, given, meanwhile);
        else
            multiply_integers<P, false>(screen, panels, given, meanwhile);
        const auto* exact = reinterpret_cast<const bf16*>(panels + screen_head);
        const index stride = screen.stride / static_cast<index>(sizeof(bf16));
        const Operand inputs{given.exact, screen.exact, exact, screen.exact, stride};
        Isa::template multiply_into<false>(shaped_, exact_, across_all, P, rows, inputs, nullptr,
                                           meanwhile, Nothing{});
    }

    template <int P, bool Lower, class Meanwhile>
    void multiply_integers(const Screen& screen, const char* panels, const ScreenedRows& given,
                           Meanwhile& meanwhile) {
        const char* coarse = panels + screen_head + screen.exact * panel_width * sizeof(bf16);
        using Sums = TileSums<Tiles, P, Lower>;
        Sums::zero();
        for (index k = 0; k < screen.coarse; k += byte_step) {
            load<P, Lower>(given.coarse + k, screen.coarse, coarse + k * panel_width,
                           screen.stride);
            add<P, Lower>();
            meanwhile();
        }
        Sums::store(whole_, across_all);
    }

    template <int P, bool Lower>
    static void load(const std::int8_t* rows, index ld, const char* panels, index stride) {
        Tiles::template load<4>(rows, ld);
        if constexpr (Lower) Tiles::template load<5>(rows + 16 * ld, ld);
        Tiles::template load<6>(panels, 64);
        if constexpr (P > 1) Tiles::template load<7>(panels + stride, 64);
    }

    template <int P, bool Lower>
    static void add() {
        Tiles::template add_bytes<0, 4, 6>();
        if constexpr (P > 1) Tiles::template add_bytes<1, 4, 7>();
        if constexpr (Lower) Tiles::template add_bytes<2, 5, 6>();
        if constexpr (Lower && P > 1) Tiles::template add_bytes<3, 5, 7>();
    }

    typename Isa::Shaped shaped_;
    alignas(64) std::int32_t whole_[most_rows * across_all];
    alignas(64) float exact_[most_rows * across_all];
};

}  // namespace gw::stepping
