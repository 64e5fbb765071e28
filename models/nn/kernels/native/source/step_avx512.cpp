// The step for processors with AVX512-BF16.
#include "step.h"

using namespace gw;
using namespace gw::stepping;

GW_API void gw_step_avx512(const Model* model, const Batch* batch) {
    step<Avx512>(*model, *batch);
}

GW_API void gw_logits_avx512(const Model* model, const Batch* batch) {
    logits<Avx512>(*model, *batch);
}
