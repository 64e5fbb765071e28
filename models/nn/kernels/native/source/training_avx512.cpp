// The products of training for processors with AVX512-BF16.
#include "blocks_avx512.h"

using Isa = gw::Avx512;

#define GW_FORM(function) gw_##function##_avx512
#include "training.h"
