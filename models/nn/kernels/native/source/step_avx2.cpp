// The step for processors with AVX2 alone.
#include "step.h"

using namespace gw;
using namespace gw::stepping;

GW_API void gw_step_avx2(const Model* model, const Batch* batch) { step<Avx2>(*model, *batch); }

GW_API void gw_logits_avx2(const Model* model, const Batch* batch) {
    logits<Avx2>(*model, *batch);
}
