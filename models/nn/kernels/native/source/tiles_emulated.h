// The tile instructions of AMX in plain C++.
#pragma once

#include "tile_shape.h"

namespace gw {

// What the tile instructions mean, for a test on processors without them.
struct EmulatedTiles {
    static inline thread_local TileShape shape;
    static inline thread_local std::uint8_t bytes[8][16][64];

    static void configure(const TileShape& wanted) { shape = wanted; }
    template <int T>
    static void zero() {
        __builtin_memset(bytes[T], 0, sizeof bytes[T]);
    }
    template <int T>
    static void load(const void* source, index stride) {
        for (int r = 0; r < shape.rows[T]; ++r)
            __builtin_memcpy(bytes[T][r], static_cast<const char*>(source) + r * stride, 64);
    }
    template <int T>
    static void load_past(const void* source, index stride) {
        load<T>(source, stride);
    }
    template <int T>
    static void store(void* target, index stride) {
        for (int r = 0; r < shape.rows[T]; ++r)
            __builtin_memcpy(static_cast<char*>(target) + r * stride, bytes[T][r], 64);
    }
    template <int C, int A, int B>
    static void add() {
        for (int m = 0; m < shape.rows[A]; ++m)
            for (int n = 0; n < 16; ++n) {
                float sum;
                __builtin_memcpy(&sum, &bytes[C][m][4 * n], 4);
                for (int k = 0; k < 32; ++k)
                    sum += number(&bytes[A][m][2 * k]) * number(&bytes[B][k / 2][4 * n + 2 * (k % 2)]);
                __builtin_memcpy(&bytes[C][m][4 * n], &sum, 4);
            }
    }
    template <int C, int A, int B>
    static void add_bytes() {
        for (int m = 0; m < shape.rows[A]; ++m)
            for (int n = 0; n < 16; ++n) {
                std::int32_t sum;
                __builtin_memcpy(&sum, &bytes[C][m][4 * n], 4);
                for (int k = 0; k < 64; ++k)
                    sum += static_cast<std::int8_t>(bytes[A][m][k]) *
                           bytes[B][k / 4][4 * n + k % 4];
                __builtin_memcpy(&bytes[C][m][4 * n], &sum, 4);
            }
    }

   private:
    static float number(const std::uint8_t* source) {
        std::uint16_t half;
        __builtin_memcpy(&half, source, 2);
        const std::uint32_t whole = std::uint32_t{half} << 16;
        float value;
        __builtin_memcpy(&value, &whole, 4);
        return value;
    }
};

}  // namespace gw
