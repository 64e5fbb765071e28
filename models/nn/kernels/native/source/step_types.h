// What a step is told, as plain records that Python mirrors field by field (`records.py`).
//
// Sites are where adapters read: 0 the input of q, k and v, 1 that of o, 2 that of gate and up, 3
// that of down. Places are q, k, v, o, gate, up, down; sublayers are attention, feed-forward.
#pragma once

#include "common.h"

namespace gw::stepping {

enum PlaceName { place_q, place_k, place_v, place_o, place_gate, place_up, place_down, place_count };
constexpr int sites = 4, sublayers = 2;

struct Down {           // the low-rank inputs of the places of one site, joined
    const bf16* packed;   // (ranks, inputs)
    const float* scales;  // (ranks)
    index ranks;          // a multiple of 16; 0 where there are none
};

struct Place {
    const bf16* weight;  // packed (outputs, inputs), instead of the base's and its bias; or null
    const bf16* up;      // packed (outputs, rank)
    index rank;          // even; 0 where there is none
    index stride;        // from one panel of `up` to the next; another place's may lie between
    index behind;        // columns of that place before its own, if one tile has both; or 0
    index first;         // of the columns that its site's `Down` computes
    const float *input_scale, *output_scale, *bias;

    const bf16* panel(index output) const { return up + output / panel_width * stride; }
};

struct Bottleneck {
    const bf16 *down, *up;  // packed (width, hidden) and (hidden, width)
    const float *down_bias, *up_bias;
    index width;  // a multiple of 16; 0 where there is none
    std::int32_t activation, reads_input;
    float scale, reserved;
};

struct Second {  // attention to constant keys
    const bf16 *keys, *values;  // by key head and block, packed as `pack_keys`, `pack_values` do
    const float* gate;          // (heads)
    index count;                // keys; 0 where there are none
};

struct AdapterLayer {
    Down downs[sites];
    Place places[place_count];
    Bottleneck bottlenecks[sublayers];
    Second second;
    const float* gains[sublayers];
};

struct Adapter {
    const AdapterLayer* layers;
    Down head_down;
    Place head;
    const float* final_gain;
};

struct Matrix {          // a weight of the base
    const void* panels;    // packed bfloat16, unless one of the following says otherwise
    const float* scales;   // of int8: of the outputs in the order of the panels; or null
    index coded_stride;    // of coded ones: from one to the next in bytes; or 0
    index rounded;         // whether they are in block floating point, which AVX2 alone reads
};

struct Layer {
    Matrix qkv, o, gate_up, down;
    const float *qkv_bias, *o_bias, *gate_up_bias, *down_bias;
    const float* gains[sublayers];
    bf16 *keys, *values;  // (slots, key heads, positions, head size)
};

struct Screen {               // which tokens of a row may be its likeliest: `step_screen.h`
    const void* panels;         // or null where there is none
    const std::int32_t* order;  // of inputs: those in bfloat16 first
    index exact, coarse;        // of either kind; multiples of 32 and of 64, as tiles need
    index stride;               // from one panel to the next in bytes
    float slack, reserved;      // how far the head lies from the numbers screened, over its length
};

struct Model {
    const Layer* layers;
    const bf16* embedding;  // (vocabulary, hidden)
    Matrix head;
    Screen screen;
    const float *head_bias, *final_gain;
    const float *cosines, *sines;  // (positions, head size / 2)
    index depth, hidden, heads, key_heads, head_size, inner, vocabulary;
    index positions;  // of a slot
    float epsilon, scale;
};

struct Group {  // rows [first, last) of one adapter
    const Adapter* adapter;
    index first, last;
};

struct Span {  // rows from `first` stand at positions from `start` of one slot
    index slot, first, count, start;
    index decodes;  // whether it is a row that decodes, which attends in a way of its own
};

struct Batch {
    index rows;
    const index *ids, *slots, *positions;
    const Adapter* const* owners;  // of each row; null for the base
    const Group* groups;
    index group_count;
    const Span* spans;
    index span_count;
    bf16* hidden;  // (rows, hidden): final-normed, of rows that are read; read by `gw_logits`
    index read;    // rows, in order; behind its attention the last layer computes no others
    const index* read_rows;
    const Adapter* const* read_owners;
    const Group* read_groups;  // over the rows that are read
    index read_group_count;
    index wanted;
    const index *wanted_rows, *targets;  // rows of the stream, and of `logits`
    const Group* wanted_groups;          // over the wanted rows
    index wanted_group_count;
    float* logits;     // (wanted, vocabulary); or else
    index* likeliest;  // (wanted), the first token of the largest logit, or -1: see `likeliest`
    index most_ranks, most_width;
    index scales_inputs;     // whether any adapter scales what q, k, v, gate or up read
    index replaces_weights;  // whether any adapter has a weight of its own in the base's place
};

}  // namespace gw::stepping
