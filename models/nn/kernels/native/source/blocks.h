// The products by vectors, of the instructions that a translation unit is compiled for.
#pragma once

#ifdef __AVX512BF16__
#include "blocks_avx512.h"
#else
#include "blocks_avx2.h"
#endif

namespace gw {

#ifdef __AVX512BF16__
using Vectors = Avx512;
#else
using Vectors = Avx2;
#endif

}  // namespace gw
