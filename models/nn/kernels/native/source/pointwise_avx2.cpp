// The pointwise ops of training in float32 for processors with AVX2 alone.
#include "common.h"

using Number = float;

#define GW_FORM(function) gw_##function##_avx2
#include "norm.h"
#include "rotate.h"
#include "scale.h"
#include "short.h"
#include "swiglu.h"
