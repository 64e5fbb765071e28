// The tiles of a product: 0 to 3 hold sums (two of rows by two of panels), 4 and 5 rows, 6 and 7
// panels. There may be one panel, and no lower rows.
#pragma once

#include <type_traits>

#include "common.h"
#include "tile_shape.h"

namespace gw {

// Remembers how tiles are shaped, as long as nobody else uses them on this thread.
template <class Tiles>
class ShapedTiles {
   public:
    // For some rows; whole upper tiles do with lower ones that are not used.
    void fit(index rows) {
        if (rows == rows_ || (rows == 16 && rows_ > 16)) return;
        const index upper = std::min<index>(16, rows), lower = rows - upper;
        const std::uint8_t above = upper, below = std::max<index>(lower, 1);
        Tiles::configure(TileShape::of({above, above, below, below, above, below, 16, 16}));
        rows_ = rows;
    }
    // Somebody else has shaped them.
    void lose() { rows_ = 0; }

   private:
    index rows_ = 0;
};

template <class Tiles, int P, bool Lower>
struct TileSums {
    static void zero() {
        for_each([](auto tile, index, index) { Tiles::template zero<tile>(); });
    }
    // Sums are rows of numbers of 32 bits, `ld` apart.
    template <class Number>
    static void load(const Number* sums, index ld) {
        for_each([=](auto tile, index row, index column) {
            Tiles::template load<tile>(sums + row * ld + column, ld * sizeof(Number));
        });
    }
    template <class Number>
    static void store(Number* sums, index ld) {
        for_each([=](auto tile, index row, index column) {
            Tiles::template store<tile>(sums + row * ld + column, ld * sizeof(Number));
        });
    }

   private:
    // Calls act(tile, row, column) with where its sums begin.
    template <class Act>
    [[gnu::always_inline]] static void for_each(Act&& act) {
        act(std::integral_constant<int, 0>{}, 0, 0);
        if constexpr (P > 1) act(std::integral_constant<int, 1>{}, 0, panel_width);
        if constexpr (Lower) act(std::integral_constant<int, 2>{}, 16, 0);
        if constexpr (Lower && P > 1) act(std::integral_constant<int, 3>{}, 16, panel_width);
    }
};

}  // namespace gw
