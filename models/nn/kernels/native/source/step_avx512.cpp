// The step for processors with AVX512-BF16.
#include "step.h"

#include <sys/mman.h>

using namespace gw;
using namespace gw::stepping;

GW_API void gw_step_avx512(const Model* model, const Batch* batch) {
    step<Avx512>(*model, *batch);
}

GW_API void gw_logits_avx512(const Model* model, const Batch* batch) {
    logits<Avx512>(*model, *batch);
}

// Packs constant keys and values (heads, count, size) by head and block of `block_keys`.
GW_API void gw_pack_attention(const bf16* keys, const bf16* values, index heads, index count,
                              index size, bf16* packed_keys, bf16* packed_values) {
    for (index head = 0; head < heads; ++head)
        for (index top = 0; top < count; top += block_keys) {
            const index here = std::min(block_keys, count - top);
            const index source = (head * count + top) * size;
            pack_keys(keys + source, here, size, 0, packed_keys);
            pack_values(values + source, here, size, 0, packed_values);
            packed_keys += block_keys * size;
            packed_values += block_keys * size;
        }
}

// Asks for large pages for what is read as a whole in every step.
GW_API void gw_use_large_pages(void* start, index bytes) {
    const auto first = reinterpret_cast<std::uintptr_t>(start), page = std::uintptr_t{4096};
    const auto aligned = (first + page - 1) / page * page;
    if (aligned < first + bytes)
        madvise(reinterpret_cast<void*>(aligned), first + bytes - aligned, MADV_HUGEPAGE);
}
