// The tile instructions of AMX.
#pragma once

#include "tile_shape.h"

namespace gw {

// The compiler's own intrinsics want tile numbers spelt out, which templates cannot do.
struct TileUnit {
    static void configure(const TileShape& shape) {
        __asm__ volatile("ldtilecfg %0" ::"m"(shape));
    }
    template <int T>
    static void zero() {
        __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
    }
    template <int T>
    static void load(const void* source, index stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(stride), "i"(T)
                         : "memory");
    }
    // The same, past the first cache, for others to stay in it.
    template <int T>
    static void load_past(const void* source, index stride) {
        __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(stride), "i"(T)
                         : "memory");
    }
    template <int T>
    static void store(void* target, index stride) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(target), "r"(stride), "i"(T)
                         : "memory");
    }
    template <int C, int A, int B>
    static void add() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
    // The same of rows of signed bytes and panels of unsigned ones, to sums of 32 bits.
    template <int C, int A, int B>
    static void add_bytes() {
        __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
};

}  // namespace gw
