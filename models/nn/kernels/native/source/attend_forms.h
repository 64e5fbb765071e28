// The entry points of attention, in the form that a translation unit asks for: see `training.h`.
#pragma once

#include "attempt.h"
#include "attend.h"

using namespace gw;

GW_API void GW_FORM(attend_forward)(const Isa::Number* heads, index ld, index query_heads,
                                    index kv_heads, index size, float scale, const index* bounds,
                                    const index* parents, index sequences, Isa::Number* out,
                                    float* logs) {
    attempt([&] {
        attend_forward<Isa>({heads, ld, query_heads, kv_heads, size, scale},
                            {bounds, parents, sequences}, out, logs);
    });
}

GW_API void GW_FORM(attend_backward)(const Isa::Number* heads, index ld, index query_heads,
                                     index kv_heads, index size, float scale, const index* bounds,
                                     const index* parents, index sequences, const Isa::Number* out,
                                     const float* logs, const Isa::Number* grad_out, index ldd,
                                     Isa::Number* grad) {
    attempt([&] {
        attend_backward<Isa>({heads, ld, query_heads, kv_heads, size, scale},
                             {out, grad_out, ldd, logs, grad}, {bounds, parents, sequences});
    });
}
