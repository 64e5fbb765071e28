// The attention of training in float32 for processors with AVX2 alone.
#include "attend.h"
#include "blocks_float.h"

using namespace gw;

GW_API void gw_attend_forward_avx2(const float* heads, index ld, index query_heads,
                                   index kv_heads, index size, float scale, const index* bounds,
                                   const index* parents, index sequences, float* out,
                                   float* logs) {
    attend_forward<Avx2Floats>({heads, ld, query_heads, kv_heads, size, scale},
                               {bounds, parents, sequences}, out, logs);
}

GW_API void gw_attend_backward_avx2(const float* heads, index ld, index query_heads,
                                    index kv_heads, index size, float scale, const index* bounds,
                                    const index* parents, index sequences, const float* out,
                                    const float* logs, const float* grad_out, index ldd,
                                    float* grad) {
    attend_backward<Avx2Floats>({heads, ld, query_heads, kv_heads, size, scale},
                                {out, grad_out, ldd, logs, grad}, {bounds, parents, sequences});
}
