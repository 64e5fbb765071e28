// The step for processors with AMX, and its form without its instructions for tests.
#include "blocks_amx.h"
#include "step.h"
#include "tiles_amx.h"
#include "tiles_emulated.h"

using namespace gw;
using namespace gw::stepping;

GW_API void gw_step_amx(const Model* model, const Batch* batch) {
    step<Amx<TileUnit>>(*model, *batch);
}

GW_API void gw_logits_amx(const Model* model, const Batch* batch) {
    logits<Amx<TileUnit>>(*model, *batch);
}

GW_API void gw_step_emulated(const Model* model, const Batch* batch) {
    step<Amx<EmulatedTiles>>(*model, *batch);
}

GW_API void gw_logits_emulated(const Model* model, const Batch* batch) {
    logits<Amx<EmulatedTiles>>(*model, *batch);
}
