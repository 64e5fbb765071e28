// Drawing tokens for processors with AVX-512.
#include "draw.h"

using namespace gw;

GW_API void gw_draw_avx512(const float* logits, index rows, index vocabulary, const Draw* draws,
                       index* tokens) {
    draw(logits, rows, vocabulary, draws, tokens);
}
