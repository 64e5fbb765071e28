// Packing for products by the instructions that a translation unit is compiled for.
#pragma once

#ifdef __AVX512BF16__
#include "pack.h"
#else
#include "pack_float.h"
#endif
