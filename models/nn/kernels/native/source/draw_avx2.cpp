// Drawing tokens for processors with AVX2.
#include "draw.h"

using namespace gw;

GW_API void gw_draw_avx2(const float* logits, index rows, index vocabulary, const Draw* draws,
                     index* tokens) {
    draw(logits, rows, vocabulary, draws, tokens);
}
