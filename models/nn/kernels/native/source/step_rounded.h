// Products of a step in block floating point, which AVX2 multiplies faster than float32.
#pragma once

#include <vector>

#include "block_sums.h"
#include "scratch.h"

namespace gw::stepping {

// The rows of a product, each thread's own: a block of them is rounded when it is first read, for
// all panels that read it.
class RoundedRows {
   public:
    void clear(index rows, index inputs, index block_rows) {
        rows_ = rows, inputs_ = inputs, block_rows_ = block_rows;
        sources_.clear();
    }
    // Rows that some panels read: for each their address, once or again.
    void add(const bf16* x) {
        if (find(x) == sources_.size()) sources_.push_back(x);
    }
    void make_room() {
        const index all = sources_.size() * rows_;
        values_ = values_room_.room<Whole>(all * inputs_);
        scales_ = scales_room_.room<float>(all * groups_of(inputs_));
        there_.assign(sources_.size() * ((rows_ + block_rows_ - 1) / block_rows_), false);
    }

    WholeRows block(const bf16* x, Range block) {
        const index source = find(x);
        const WholeRows rows = WholeRows{values_, scales_, inputs_}.from(source * rows_);
        const index blocks = there_.size() / sources_.size();
        char& there = there_[source * blocks + block.first / block_rows_];
        if (!there)
            for (index row = block.first; row < block.last; ++row)
                rows.from(row).round(x + row * inputs_);
        there = true;
        return rows.from(block.first);
    }

   private:
    std::size_t find(const bf16* x) const {
        return std::find(sources_.begin(), sources_.end(), x) - sources_.begin();
    }

    Scratch values_room_, scales_room_;
    Whole* values_ = nullptr;
    float* scales_ = nullptr;
    index rows_ = 0, inputs_ = 0, block_rows_ = 0;
    std::vector<const bf16*> sources_;
    std::vector<char> there_;
};

inline RoundedRows& rounded_rows() {  // which all products of a thread share
    static thread_local RoundedRows rows;
    return rows;
}

// A row by itself, until the thread rounds something else.
inline WholeRows round_one(const bf16* x, index inputs) {
    RoundedRows& rows = rounded_rows();
    rows.clear(1, inputs, 1);
    rows.add(x);
    rows.make_room();
    return rows.block(x, {0, 1});
}

// The sums (rows, ld) with some panels.
template <class Meanwhile>
void multiply_rounded(const WholeRows& x, index rows, const WholePanels& panels, index count,
                      float* sums, index ld, Meanwhile& meanwhile) {
    const auto begin = [&](Range own) {
        for (index row = own.first; row < own.last; ++row)
            std::fill_n(sums + row * ld, count * panel_width, 0.0f);
    };
    add_product(x, rows, panels, count, sums, ld, begin, Nothing{}, meanwhile);
}

}  // namespace gw::stepping
