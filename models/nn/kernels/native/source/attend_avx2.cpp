// The attention of training in float32 for processors with AVX2 alone.
#include "blocks_float.h"

using Isa = gw::Avx2Floats;

#define GW_FORM(function) gw_##function##_avx2
#include "attend_forms.h"
