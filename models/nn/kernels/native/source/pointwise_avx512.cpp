// The pointwise ops of training in bfloat16 for processors with AVX512-BF16.
#include "common.h"

using Number = gw::bf16;

#define GW_FORM(function) gw_##function##_avx512
#include "norm.h"
#include "rotate.h"
#include "scale.h"
#include "swiglu.h"
