// Packing that is done once, and memory for the result; for any x86-64.
#include <sys/mman.h>

#include "common.h"

using namespace gw;

namespace {

constexpr int collapse = 25;  // MADV_COLLAPSE, which older headers lack

// Element k of output n goes where the products look for it among `padded` inputs.
void pack(const bf16* source, index across, index along, Range outputs, index inputs,
          index padded, bf16* packed) {
    for (index n = outputs.first; n < outputs.last; ++n)
        for (index k = 0; k < inputs; ++k)
            packed[(n / panel_width * padded + k / 2 * 2) * panel_width + n % panel_width * 2 +
                   k % 2] = source[n * across + k * along];
}

// The same of 16 outputs whose inputs lie side by side, pair by pair.
void pack_panel(const bf16* source, index inputs, bf16* packed) {
    for (index k = 0; k < inputs; k += 2)
        for (index n = 0; n < panel_width; ++n, packed += 2)
            __builtin_memcpy(packed, source + n * inputs + k, 2 * sizeof *packed);
}

}  // namespace

// Packs W (N, K); N is a multiple of 16, K of 2.
GW_API void gw_pack(const bf16* weight, index outputs, index inputs, bf16* packed) {
#pragma omp parallel for schedule(static)
    for (index p = 0; p < outputs; p += panel_width)
        pack_panel(weight + p * inputs, inputs, packed + p * inputs);
}

// Packs int8 (N, K), which is read an input of 16 outputs at a time, not in pairs.
GW_API void gw_pack_int8(const std::int8_t* weight, index outputs, index inputs,
                         std::int8_t* packed) {
#pragma omp parallel for schedule(static)
    for (index n = 0; n < outputs; ++n)
        for (index k = 0; k < inputs; ++k)
            packed[(n / panel_width * inputs + k) * panel_width + n % panel_width] =
                weight[n * inputs + k];
}

// Packs constant keys and values (heads, count, size) by head and block into zeros: keys as the
// outputs of a product, values as its inputs.
GW_API void gw_pack_attention(const bf16* keys, const bf16* values, index heads, index count,
                              index size, bf16* packed_keys, bf16* packed_values) {
    for (index head = 0; head < heads; ++head)
        for (index top = 0; top < count; top += block_keys) {
            const index here = std::min(block_keys, count - top);
            const index padded = (here + input_step - 1) / input_step * input_step;
            const index source = (head * count + top) * size;
            pack(keys + source, size, 1, {0, here}, size, size, packed_keys);
            pack(values + source, 1, size, {0, size}, here, padded, packed_values);
            packed_keys += block_keys * size;
            packed_values += block_keys * size;
        }
}

// Asks for large pages for what is read as a whole in every step.
GW_API void gw_use_large_pages(void* start, index bytes) {
    const auto first = reinterpret_cast<std::uintptr_t>(start), page = std::uintptr_t{4096};
    const auto aligned = (first + page - 1) / page * page;
    if (aligned >= first + bytes) return;
    const auto advise = [&](int what) {
        madvise(reinterpret_cast<void*>(aligned), first + bytes - aligned, what);
    };
    advise(MADV_HUGEPAGE);
    advise(collapse);  // what has been touched already, as freed memory that is used again has
}
