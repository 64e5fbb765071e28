// Attention of drawn tokens by tiles: the few queries of a row that share a key head, over keys and
// values as they lie.
//
// Sixteen keys are the rows of one tile, the queries the columns of another. Of values a row is
// read as pairs of outputs where tiles expect pairs of inputs: so each weight stands alone in a
// pair, in one row of a tile for even outputs, in the next for odd ones. Nothing is turned.
//
// Scores are weighed beside the tiles of the next block's, which may be another row's.
#pragma once

#include "ahead.h"
#include "blocks_amx.h"
#include "step_attention.h"
#include "tile_shape.h"

namespace gw::stepping {

struct Drawn {  // what the queries of a drawn token that share a key head attend to
    const Task* task;
    const bf16 *queries, *keys, *values;
    index count;  // of keys
};

constexpr index drawn_keys = 128;  // of a block

struct DrawnScratch {
    alignas(64) bf16 queries[panel_width * most_head_size];  // tiles of 16 pairs by 16 queries
    alignas(64) bf16 rest[16 * most_head_size];              // rows that fill no tile, and zeros
    alignas(64) float columns[2][drawn_keys * panel_width];  // scores of two blocks, key by key
    alignas(64) float scores[few_queries][drawn_keys];
    alignas(64) bf16 weights[drawn_keys / 16][2 * few_queries * input_step];  // two rows a query
    alignas(64) float mixed[2][2 * few_queries * panel_width];  // likewise, of 32 outputs each
    alignas(64) float attended[few_queries * most_head_size];
};

// For Q queries a key head, by `Tiles`. What a row gets depends on what it attends to alone.
template <class Tiles, int Q>
class DrawnAttention {
   public:
    DrawnAttention(DrawnScratch& scratch, index size, float scale)
        : s(scratch), size(size), scale(scale) {}

    // Attends with a head of a row; what `next` reads, if anything, is fetched meanwhile. Calls
    // take(task, attended (Q, size)) for one that is done, perhaps a former one, which may shape
    // tiles in its own way if `lose_shape` is called.
    template <class Take>
    void attend(const Drawn& row, const Drawn* next, Take&& take) {
        for (index top = 0; top < row.count; top += drawn_keys) {
            turn = 1 - turn;
            const Block block{row, top, std::min(drawn_keys, row.count - top), s.columns[turn]};
            if (block.first()) pack_keys(row.queries, Q, size, 0, s.queries);
            ahead.clear();
            if (!block.last())
                expect(row, top + drawn_keys, block.groups());
            else if (next)
                expect(*next, 0, block.groups());
            score(block);
            finish(take);
            waiting = block;
        }
    }

    // Is done with all that was to be attended.
    template <class Take>
    void finish(Take&& take) {
        const Block block = waiting;
        waiting.count = 0;
        if (!block.count) return;
        weigh(block);
        mix(block);
        if (!block.last()) return;
        for (int q = 0; q < Q; ++q) divide(q);
        take(*block.row.task, s.attended);
    }

    void lose_shape() { shaped = false; }

   private:
    struct Block {
        Drawn row;
        index top, count;
        float* columns;

        index groups() const { return (count + 15) / 16; }
        bool first() const { return !top; }
        bool last() const { return top + count == row.count; }
    };

    // Tiles 0 and 1 hold scores of 16 keys, 2 and 3 outputs, 4 and 5 keys or values, 6 queries, 7
    // weights.
    void shape_tiles() {
        if (shaped) return;
        constexpr std::uint8_t rows = 2 * Q;  // two a query
        Tiles::configure(TileShape::of({16, 16, rows, rows, 16, 16, 16, rows}));
        shaped = true;
    }

    // Fetches a block while some groups are scored and others mixed.
    void expect(const Drawn& row, index top, index groups) {
        const index elements = std::min(drawn_keys, row.count - top) * size;
        ahead.add(row.keys + top * size, elements * 2);
        ahead.add(row.values + top * size, elements * 2);
        ahead.spread(groups * (size / input_step) * 2);
    }

    // Sixteen keys or values of a block; those that there are not are zeros.
    const bf16* group(const bf16* all, const Block& block, index g) const {
        const bf16* first = all + (block.top + g * 16) * size;
        const index left = (block.count - g * 16) * size;
        if (left >= 16 * size) return first;
        for (index n = 0; n < 16 * size; n += 32)
            _mm512_store_si512(s.rest + n, n < left ? _mm512_loadu_si512(first + n)
                                                    : _mm512_setzero_si512());
        return s.rest;
    }

    void score(const Block& block) {
        shape_tiles();
        for (index g = 0; g < block.groups(); g += 2) {
            const bool two = g + 1 < block.groups();
            const bf16* first = group(block.row.keys, block, g);
            const bf16* second = two ? group(block.row.keys, block, g + 1) : nullptr;
            Tiles::template zero<0>();
            Tiles::template zero<1>();
            for (index k = 0; k < size; k += input_step) {
                Tiles::template load<6>(s.queries + k * panel_width, 64);
                Tiles::template load<4>(first + k, size * 2);
                Tiles::template add<0, 4, 6>();
                ahead();
                if (!two) continue;
                Tiles::template load<5>(second + k, size * 2);
                Tiles::template add<1, 5, 6>();
                ahead();
            }
            float* target = block.columns + g * 16 * panel_width;
            Tiles::template store<0>(target, 64);
            if (two) Tiles::template store<1>(target + 16 * panel_width, 64);
        }
    }

    // Turns scores into weights against the highest so far.
    void weigh(const Block& block) {
        Floats top[Q], sums[Q];
        for (int q = 0; q < Q; ++q) {
            if (block.first()) highest[q] = -__builtin_inff();
            top[q] = splat(highest[q]);
            sums[q] = zeros();
        }
        for (index g = 0; g < block.groups(); ++g) {
            const Mask there = first_lanes(block.count - g * 16);
            Floats scores[4];
            by_query(block.columns + g * 16 * panel_width, scores);
            for (int q = 0; q < Q; ++q) {
                const Floats score = scores[q] * splat(scale);
                store(s.scores[q] + g * 16, score);
                top[q] = pick(there, larger(top[q], score), top[q]);
            }
        }
        for (int q = 0; q < Q; ++q) top[q] = splat(largest(top[q]));
        for (index g = 0; g < block.groups(); ++g) {
            const Mask there = first_lanes(block.count - g * 16);
            for (int q = 0; q < Q; ++q) {
                const Floats score = load(s.scores[q] + g * 16);
                const Floats weight = keep(there, exponential(score - top[q]));
                sums[q] = sums[q] + weight;
                store_alone(s.weights[g] + 2 * q * input_step, weight);
            }
        }
        for (int q = 0; q < Q; ++q) {
            shrink[q] = block.first() ? 0 : front(exponential(splat(highest[q]) - top[q]));
            total[q] = (block.first() ? 0 : total[q] * shrink[q]) + sum(sums[q]);
            highest[q] = front(top[q]);
        }
    }

    // Puts weights first into pairs of a row, then last into those of the next one.
    static void store_alone(bf16* target, Floats weight) {
        const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weight));
        const __m512i even = _mm512_cvtepu16_epi32(rounded);
        _mm512_store_si512(target, even);
        _mm512_store_si512(target + input_step, _mm512_slli_epi32(even, 16));
    }

    // The scores of up to four queries from 16 rows, one of each key.
    static void by_query(const float* columns, Floats (&scores)[4]) {
        __m512 rows[4];
        for (index n = 0; n < 4; ++n) {
            const float* first = columns + n * panel_width;
            rows[n] = _mm512_castps128_ps512(_mm_load_ps(first));
            rows[n] = _mm512_mask_broadcast_f32x4(rows[n], 0x00f0, _mm_load_ps(first + 64));
            rows[n] = _mm512_mask_broadcast_f32x4(rows[n], 0x0f00, _mm_load_ps(first + 128));
            rows[n] = _mm512_mask_broadcast_f32x4(rows[n], 0xf000, _mm_load_ps(first + 192));
        }
        for (int half = 0; half < 2; ++half) {
            const auto pair = [half](__m512 a, __m512 b) {
                return _mm512_castps_pd(half ? _mm512_unpackhi_ps(a, b) : _mm512_unpacklo_ps(a, b));
            };
            const __m512d upper = pair(rows[0], rows[1]), lower = pair(rows[2], rows[3]);
            scores[2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
            scores[2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
        }
    }

    // Adds values by their weights, for 64 outputs at a time.
    void mix(const Block& block) {
        shape_tiles();
        const index groups = block.groups();
        const bf16* last = group(block.row.values, block, groups - 1);
        const auto at = [&](index g) {
            return g + 1 < groups ? block.row.values + (block.top + g * 16) * size : last;
        };
        for (index n = 0; n < size; n += 2 * input_step) {
            const bool two = n + input_step < size;
            Tiles::template zero<2>();
            Tiles::template zero<3>();
            for (index g = 0; g < groups; ++g) {
                Tiles::template load<7>(s.weights[g], 64);
                Tiles::template load<4>(at(g) + n, size * 2);
                Tiles::template add<2, 7, 4>();
                ahead();
                if (!two) continue;
                Tiles::template load<5>(at(g) + n + input_step, size * 2);
                Tiles::template add<3, 7, 5>();
                ahead();
            }
            Tiles::template store<2>(s.mixed[0], 64);
            if (two) Tiles::template store<3>(s.mixed[1], 64);
            for (int half = 0; half < 1 + two; ++half)
                for (int q = 0; q < Q; ++q)
                    put(q, n + half * input_step, s.mixed[half], block.first());
        }
    }

    // Brings even and odd outputs of 32 into order and adds them to those of former blocks.
    void put(int q, index n, const float* mixed, bool first) {
        const Floats even = load(mixed + 2 * q * panel_width);
        const Floats odd = load(mixed + (2 * q + 1) * panel_width);
        const __m512i order =
            _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        for (index half = 0; half < 2; ++half) {
            const __m512i from = _mm512_add_epi32(order, _mm512_set1_epi32(8 * half));
            const Floats outputs = _mm512_permutex2var_ps(even, from, odd);
            float* target = s.attended + q * size + n + 16 * half;
            store(target, first ? outputs : fma(load(target), splat(shrink[q]), outputs));
        }
    }

    void divide(int q) {
        const Floats part = splat(1.0f / total[q]);
        for (index n = q * size; n < (q + 1) * size; n += 16)
            store(s.attended + n, load(s.attended + n) * part);
    }

    DrawnScratch& s;
    const index size;
    const float scale;
    float highest[Q], total[Q], shrink[Q];
    Block waiting{};
    int turn = 0;
    bool shaped = false;
    Abreast ahead;
};

}  // namespace gw::stepping
