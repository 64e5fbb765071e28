// The product of a few rows with a few packed panels by AMX tiles.
//
// A tile of 16 rows and 32 inputs times a tile of 32 inputs and 16 outputs adds to a tile of sums.
// The number of rows in a tile does not change how a row is summed, so a row's bits do not depend
// on its neighbours. `Tiles` holds the instructions; a test replaces them by plain loops.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "common.h"
#include "done.h"
#include "narrow.h"
#include "operand.h"
#include "scratch.h"
#include "tile_sums.h"
#include "vector.h"

namespace gw {

// Rows in the order in which tiles read them, sixteen at a time: for every 32 inputs a tile; null
// where all are zeros.
struct Halves {
    const bf16 *upper, *lower;
    index inputs;
};

// What is read once by tiles while the other side is read again and again, from the first cache:
// rows, or panels, or panels that come from memory.
enum class Passing { rows, panels, memory };
template <Passing which>
using Pass = std::integral_constant<Passing, which>;

template <class Tiles>
struct Amx {
    using Number = bf16;  // of the operands of training
    using Unit = Tiles;  // for what is computed by tiles without panels
    using Shaped = ShapedTiles<Tiles>;
    static constexpr index most_rows = 32;
    static constexpr int most_panels = 2;
    static constexpr int piece_panels = 4;  // of a step's product
    static constexpr index step = 32;  // inputs of an operand must be a multiple of this
    static constexpr index between = step;  // from one call of meanwhile() to the next
    template <class Packed>
    static constexpr Widening widening = std::is_same_v<Packed, bf16> ? Widening::none
                                                                      : Widening::along;
    static constexpr bool works_aside = true;  // leaving vectors to others
    static constexpr index group_bytes = 1024 * 1024;  // half of a core's second cache
    static constexpr index worth_copying = 8;           // panels that read the same rows
    static constexpr index copied_inputs = 768;  // at most: a block's rows fill the first cache

    // Panels that are packed together, for rows to be read as seldom as can be.
    static index group(index inputs) {
        return std::max<index>(most_panels, group_bytes / (2 * panel_width * inputs) / 2 * 2);
    }

    template <int P, class Store>
    static void multiply(const bf16* x, index ldx, index rows, const bf16* panels, index inputs,
                         Store&& store) {
        const Operand given{x, ldx, panels, inputs, panel_width * inputs};
        multiply_group(P, rows, given, {}, [&](index row, index panel, auto... sums) {
            (store(row, panel++, sums), ...);
        });
    }

    // How often `multiply_to` calls meanwhile().
    static index calls(index rows, index panels, index inputs) {
        return (rows + most_rows - 1) / most_rows * ((panels + 1) / 2) * (inputs / step);
    }

    // The sums (rows, ld), added to what is there or put there.
    template <bool adds, class Meanwhile = Nothing>
    static void multiply_to(float* sums, index ld, index panels, index rows, const Operand& given,
                            Meanwhile&& meanwhile = {}) {
        Shaped shaped;
        multiply_to<adds>(shaped, sums, ld, panels, rows, given, meanwhile);
    }
    // The same by tiles that may be shaped already.
    template <bool adds, class Meanwhile = Nothing>
    static void multiply_to(Shaped& shaped, float* sums, index ld, index panels, index rows,
                            const Operand& given, Meanwhile&& meanwhile = {}) {
        for (index top = 0; top < rows; top += most_rows) {
            const index here = std::min(most_rows, rows - top);
            shaped.fit(here);
            const Rows own = in_order(given.from(top), here, panels);
            for (index p = 0; p < panels; p += most_panels)
                block<adds>(std::min<index>(most_panels, panels - p), here,
                            sums + top * ld + p * panel_width, ld, [&](auto add) {
                                add(Pass<Passing::panels>{}, own, given.panel(p), nullptr,
                                    meanwhile);
                            });
        }
    }

    // The sums (rows, ld) of at most `most_rows` rows; calls meanwhile() for every `step` inputs,
    // and for every one or two panels more(first, panels, adder), which adds what else their sums
    // have: see `Adder`. That comes first, for tiles rest while the first inputs are widened.
    // Panels that come from memory, `Far`, are fetched a little ahead, and what follows them. What
    // narrow ones widen to is left in `wide`, if it is not null.
    template <bool Far, class Packed, class Meanwhile, class More>
    static void multiply_into(Shaped& shaped, float* sums, index ld, index panels, index rows,
                              const OperandOf<bf16, Packed>& given, bf16* wide,
                              Meanwhile&& meanwhile, More&& more) {
        shaped.fit(rows);
        const Rows all = as_they_lie(given);
        for (index p = 0; p < panels; p += most_panels) {
            const index count = std::min<index>(most_panels, panels - p);
            bf16* here = wide ? wide + p * panel_width * given.inputs : nullptr;
            block<false>(count, rows, sums + p * panel_width, ld, [&](auto add) {
                using Passes = Pass<Far ? Passing::memory : Passing::rows>;
                more(p, count, Adder{});
                add(Passes{}, all, given.panel(p), here, meanwhile);
            });
        }
    }

    // How often `multiply_group` calls store().
    static index stores(index rows, index panels) { return rows * ((panels + 1) / 2); }

    // Calls store(row, panel, sums...), with the sums of one panel or of two side by side over the
    // inputs of two operands, `more` after `first`: all panels for some rows, then for the next
    // ones. The sums of a block are handed on while the tiles of the next one are at work.
    template <class Store>
    static void multiply_group(index panels, index rows, const Operand& first, const Operand& more,
                               Store&& store) {
        alignas(64) float sums[2][most_rows * most_panels * panel_width];
        Done done;
        Shaped shaped;
        index turn = 0;
        for (index top = 0; top < rows; top += most_rows) {
            const index here = std::min(most_rows, rows - top);
            shaped.fit(here);
            const Rows one = in_order(first.from(top), here, panels);
            const Rows two = as_they_lie(more.from(top));
            for (index p = 0; p < panels; p += most_panels, turn = 1 - turn) {
                const index steps = std::max<index>(1, (first.inputs + more.inputs) / step);
                const index count = (done.left() + steps - 1) / steps;
                const auto meanwhile = [&] { done.hand_on(count, store); };
                const index across = std::min<index>(most_panels, panels - p);
                block<false>(across, here, sums[turn], 32, [&](auto add) {
                    add(Pass<Passing::panels>{}, one, first.panel(p), nullptr, meanwhile);
                    add(Pass<Passing::panels>{}, two, more.panel(p), nullptr, meanwhile);
                });
                done.hand_on(done.left(), store);
                done = {sums[turn], top, p, here, across};
            }
        }
        done.hand_on(done.left(), store);
    }

    // Adds to the sums of one of the panels at work, or with two panels to those of both.
    struct Adder {
        void to_first(const Halves& rows, const bf16* panel) const {
            add_halves<0, 1>(rows, panel, 0);
        }
        void to_second(const Halves& rows, const bf16* panel) const {
            add_halves<1, 1>(rows, panel, 0);
        }
        // To one by some rows and to the other by more, of which one tile has the panels.
        void to_each(const Halves& rows, const Halves& more, const bf16* panels) const {
            Tiles::template load<6>(panels, 64);
            const bf16* next = panels + tile_numbers;  // as terms by turns follow on one another
            for (index i = 0; i < tile_numbers; i += 32) _mm_prefetch(next + i, _MM_HINT_T1);
            add_half<0, 4>(rows.upper, more.upper);
            add_half<2, 5>(rows.lower, more.lower);
        }
        void to_both(const Halves& rows, const bf16* panels, index stride) const {
            add_halves<0, 2>(rows, panels, stride);
        }
    };

   private:
    struct Rows {
        const bf16* x;
        index ld, next;  // from one row to the next, and from some inputs to the next ones
    };

    template <class Given>
    static Rows as_they_lie(const Given& given) {
        return {given.x, given.ldx, step};
    }

    // Some rows in the order in which tiles read them, if many panels do and find them near.
    static Rows in_order(const Operand& given, index rows, index panels) {
        if (panels < worth_copying || given.inputs > copied_inputs) return as_they_lie(given);
        static thread_local Scratch room;
        bf16* tiles = room.room<bf16>(most_rows * given.inputs);
        for (index k = 0; k < given.inputs; k += step)
            for (index r = 0; r < rows; ++r)
                _mm512_store_si512(tiles + k * most_rows + r * step,
                                   _mm512_loadu_si512(given.x + r * given.ldx + k));
        return {tiles, step, most_rows * step};
    }

    // The sums of one or two panels, to which act(add) adds: to what is there, or to zeros.
    template <bool adds, class Act>
    static void block(index panels, index rows, float* sums, index ld, Act&& act) {
        if (panels > 1 && rows > 16)
            block<adds, 2, true>(sums, ld, act);
        else if (panels > 1)
            block<adds, 2, false>(sums, ld, act);
        else if (rows > 16)
            block<adds, 1, true>(sums, ld, act);
        else
            block<adds, 1, false>(sums, ld, act);
    }

    template <bool adds, int P, bool Lower, class Act>
    static void block(float* sums, index ld, Act& act) {
        using Sums = TileSums<Tiles, P, Lower>;
        if constexpr (adds)
            Sums::load(sums, ld);
        else
            Sums::zero();
        act([](auto passing, const Rows& rows, const auto& panels, bf16* wide, auto&& meanwhile) {
            add<P, Lower, passing>(rows, panels, wide, meanwhile);
        });
        Sums::store(sums, ld);
    }

    // Loads a tile, past the first cache if what is there should stay.
    template <int T, bool Past>
    static void load(const bf16* source, index bytes) {
        if constexpr (Past)
            Tiles::template load_past<T>(source, bytes);
        else
            Tiles::template load<T>(source, bytes);
    }

    // Asks for what is read two steps later of one or two panels; behind their last inputs, that is
    // of the next ones. Nearer or farther, a core gets less of the memory's bandwidth.
    template <int P>
    static void fetch(const Operand& given, index k) {
        const index ahead = k + 2 * step;
        const bf16* next = given.panels + ahead * panel_width;
        if (ahead >= given.inputs) next += (P - 1) * given.stride;
        for (int p = 0; p < P; ++p, next += given.stride)
            for (index i = 0; i < tile_numbers; i += 32) _mm_prefetch(next + i, _MM_HINT_T0);
    }

    template <int P, bool Lower, Passing passing, class Meanwhile>
    static void add(const Rows& rows, const Operand& given, bf16*, Meanwhile& meanwhile) {
        for (index k = 0; k < given.inputs; k += step) {
            if constexpr (passing == Passing::memory) fetch<P>(given, k);
            const bf16* panel = given.panels + k * panel_width;
            add_step<P, Lower, passing>(rows, k, panel, panel + given.stride);
            meanwhile();
        }
    }

    template <int P, bool Lower, Passing passing, class Packed, class Meanwhile>
    static void add(const Rows& rows, const OperandOf<bf16, Packed>& given, bf16* wide,
                    Meanwhile& meanwhile) {
        constexpr bool kept = passing != Passing::memory;
        constexpr index lead = 2;  // what was stored must have arrived in the first cache
        using Panels = Widened<Packed, P, kept, lead>;
        alignas(64) bf16 ring[kept ? 1 : Panels::ring];
        Panels panels(given, kept ? wide : ring);
        const index tiles = given.inputs / step;
        for (index tile = -lead; tile < tiles; ++tile) {
            if (tile + lead < tiles) panels.widen_and_fetch(tile + lead);
            if (tile < 0) continue;
            add_step<P, Lower, passing>(rows, tile * step, panels.at(0, tile),
                                        panels.at(P - 1, tile));
            meanwhile();
        }
    }

    // All loads come before the first product: where another thread of the core is at work, a
    // product waits for what was loaded just before it.
    template <int P, bool Lower, Passing passing>
    static void add_step(const Rows& rows, index k, const bf16* first, const bf16* second) {
        const bf16* x = rows.x + k / step * rows.next;
        load<4, passing == Passing::rows>(x, rows.ld * 2);
        load<6, passing == Passing::panels>(first, 64);
        if constexpr (P > 1) load<7, passing == Passing::panels>(second, 64);
        if constexpr (Lower) load<5, passing == Passing::rows>(x + 16 * rows.ld, rows.ld * 2);
        Tiles::template add<0, 4, 6>();
        if constexpr (P > 1) Tiles::template add<1, 4, 7>();
        if constexpr (Lower) Tiles::template add<2, 5, 6>();
        if constexpr (Lower && P > 1) Tiles::template add<3, 5, 7>();
    }

    // The same for half of the rows of two panels, which one tile has: to two sums from `First` on.
    template <int First, int Half>
    static void add_half(const bf16* rows, const bf16* more) {
        if (!rows) return;
        Tiles::template load<Half>(rows, 64);
        Tiles::template add<First, Half, 6>();
        Tiles::template load<Half>(more, 64);
        Tiles::template add<First + 1, Half, 6>();
    }

    // The same for halves, to the sums of P panels from the `First` on.
    template <int First, int P>
    static void add_halves(const Halves& rows, const bf16* panels, index stride) {
        for (index k = 0; k < rows.inputs; k += step) {
            Tiles::template load<6>(panels + k * panel_width, 64);
            if constexpr (P > 1) Tiles::template load<7>(panels + stride + k * panel_width, 64);
            if (rows.upper) {
                Tiles::template load<4>(rows.upper + k * 16, 64);
                Tiles::template add<First, 4, 6>();
                if constexpr (P > 1) Tiles::template add<First + 1, 4, 7>();
            }
            if (rows.lower) {
                Tiles::template load<5>(rows.lower + k * 16, 64);
                Tiles::template add<First + 2, 5, 6>();
                if constexpr (P > 1) Tiles::template add<First + 3, 5, 7>();
            }
        }
    }
};

}  // namespace gw
