// How many rows the eight tile registers of AMX have, as the processor is told.
#pragma once

#include <array>

#include "common.h"

namespace gw {

struct TileShape {  // palette 1 of LDTILECFG
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    // Tiles of 64 bytes a row.
    static TileShape of(const std::array<std::uint8_t, 8>& rows) {
        TileShape shape;
        for (int t = 0; t < 8; ++t) {
            shape.row_bytes[t] = 64;
            shape.rows[t] = rows[t];
        }
        return shape;
    }
};

}  // namespace gw
