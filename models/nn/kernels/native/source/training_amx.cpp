// The products of training for processors with AMX.
#include "blocks_amx.h"
#include "tiles_amx.h"

using Isa = gw::Amx<gw::TileUnit>;

#define GW_FORM(function) gw_##function##_amx
#include "training.h"
