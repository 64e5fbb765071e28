// The products of training by tiles whose instructions are emulated, for a test of their use.
#include "blocks_amx.h"
#include "tiles_emulated.h"

using Isa = gw::Amx<gw::EmulatedTiles>;

#define GW_FORM(function) gw_##function##_emulated
#include "training.h"
