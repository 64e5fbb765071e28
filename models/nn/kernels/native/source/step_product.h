// A product with a packed weight for all rows of a step, with what each row's adapter adds to it.
//
// A thread computes pieces of a few panels by a block of rows, so an output is written by one
// thread alone, which also applies the adapters' terms to it and hands it to whatever comes next.
// All rows go through a piece before the next one is read, or all of a thread's own (`Cut`).
#pragma once

#include <optional>
#include <type_traits>

#include "step_linear.h"
#include "step_team.h"
#include "step_terms.h"

namespace gw::stepping {

// Has a value made where it is to lie. A copy would read what was stored a moment ago in other
// sizes, which waits until all stores before it are done, those of tiles among them.
template <class Make>
struct InPlace {
    Make make;
    operator std::invoke_result_t<const Make&>() const { return make(); }
};

// `output_of(panel)` names what a panel is, `input_of(place)` gives the rows that a place reads,
// and `finish(rows, first panel, panels)` what takes a piece, a row's number in it, and the row's
// own number. `later(ahead, piece, pieces)` names what else is fetched along with a piece.
//
// Where products leave vectors to others, the rows of a block are finished beside the next product.
template <class Isa, class OutputOf, class InputOf, class PlaceOf, class Finish, class Later>
class Product {
   public:
    Product(Team& team, int thread, const Weight& weight, index rows, const OutputOf& output_of,
            const InputOf& input_of, const Terms<PlaceOf>& terms, const Finish& finish,
            const Later& later)
        : team_(team),
          thread_(thread),
          weight_(weight),
          rows_(rows),
          cut_(Cut::of<Isa>(weight, rows, team.size)),
          output_of_(output_of),
          input_of_(input_of),
          terms_(terms),
          finish_(finish),
          later_(later) {
        terms_.tiles = Isa::works_aside && !weight.matrix.scales;
        terms_.look(places());
    }

    // Computes all pieces with the other threads; what is `coming` is fetched with the last one.
    void compute(Coming coming) {
        lay_terms_out();
        name_rounded();
        team_.each(thread_, cut_.parts * cut_.pieces, [&](index i, bool more) {
            const index which = i % cut_.pieces;
            const Range rows = cut_.rows(rows_, i / cut_.pieces);
            const Range panels = cut_.panels(weight_, which);
            const Chains chains = chains_of(which);
            fetch(which, more, coming, chains, rows.last - rows.first);
            widen_first(panels);
            for (index top = rows.first; top < rows.last; top += block_rows<Isa>) {
                const Range block{top, std::min(top + block_rows<Isa>, rows.last)};
                turn_ = 1 - turn_;
                Piece<Isa>& piece = pieces()[Isa::works_aside ? turn_ : 0];
                Rest& rest = rests_[turn_].emplace(InPlace{[&] {
                    return Rest{piece, panels, block, terms_.within(block), chains,
                                finish_(block, panels.first, panels.last - panels.first), block};
                }});
                sum(panels, block, piece);
                widened_ = wide_ != nullptr;  // by the first block at the latest
                do_all();
                rest_ = &rest;
                if (!Isa::works_aside || terms_.replace) do_all();
            }
        });
        do_all();
        team_.meet();
    }

   private:
    using Take = std::invoke_result_t<const Finish&, Range, index, index>;

    struct Rest {  // of the work on a block whose sums are there
        Piece<Isa>& piece;
        Range panels, block;
        Terms<PlaceOf> terms;
        Chains chains;
        Take take;
        Range summed;  // rows that wait for terms
        index next = summed.first;  // row to be taken
        index due = 0;              // rows that wait to be finished together
    };

    static constexpr index few = 8;  // rows that get their terms together
    static constexpr index bunch = 4;  // rows that are finished together, at least

    static Piece<Isa>* pieces() {
        static thread_local Piece<Isa> two[2];
        return two;
    }
    static auto& term_tiles() {
        static thread_local TermTiles tiles;
        return tiles;
    }
    static Fetching<Isa>& stream() {
        static thread_local Fetching<Isa> stream;
        return stream;
    }

    // Every thread does, for it is less than what is read.
    void lay_terms_out() {
        if constexpr (Isa::works_aside)
            if (terms_.count) terms_.lay_out(term_tiles(), rows_, block_rows<Isa>, places());
    }

    // What is to be rounded, where panels are in block floating point.
    void name_rounded() {
#ifndef __AVX512BF16__
        if (!weight_.matrix.rounded) return;
        rounded_rows().clear(rows_, weight_.inputs, block_rows<Isa>);
        const Range all = places();
        for (index place = all.first; place < all.last; ++place)
            rounded_rows().add(input_of_(static_cast<int>(place)));
        rounded_rows().make_room();
#endif
    }
    WholeRows rounded([[maybe_unused]] const bf16* x, [[maybe_unused]] Range block) {
#ifndef __AVX512BF16__
        if (weight_.matrix.rounded) return rounded_rows().block(x, block);
#endif
        return {};
    }

    Range places() const {
        const index last = weight_.outputs / panel_width - 1;
        return {output_of_(0).place, output_of_(last).place + 1};
    }

    // Whether one block has all rows, so that every panel comes from memory when it is read.
    bool far() const { return Isa::works_aside && rows_ <= block_rows<Isa>; }

    // Of a piece; where there are no terms but those that tiles add, nobody asks for them.
    Chains chains_of(index which) const {
        return terms_.apart ? Chains(cut_.panels(weight_, which), output_of_) : Chains();
    }

    // Names what is fetched while a piece is computed.
    void fetch(index which, bool more, Coming coming, const Chains& chains, index rows) {
        Fetching<Isa>& ahead = stream();
        ahead.clear();
        const Coming next = more ? coming_piece(weight_, cut_, which + 1) : coming;
        if constexpr (Isa::works_aside) {
            // They need memory for themselves; what adapters have is there as soon if nobody asks.
            if (!far()) ahead.add(next.first, next.bytes);
        } else {
            if (asked_ != which) terms_.fetch(ahead, chains);
            ahead.add(next.first, next.bytes);
            // Of many rows every thread comes by with each piece.
            if (cut_.parts == 1) later_(ahead, which, cut_.pieces);
            if (more) {
                asked_ = which + 1;
                terms_.fetch(ahead, chains_of(asked_));
            }
        }
        const index panels = cut_.panels(weight_, which).count();
        const index steps = weight_.steps<Isa>(block_rows<Isa>, panels);
        at_once_ = (block_rows<Isa> + steps - 1) / steps;
        ahead.spread(weight_.steps<Isa>(rows, panels));
    }

    // Finds room for narrow panels that are read again, and fills it where no product does so.
    void widen_first(Range panels) {
        const Widening widening = weight_.widening<Isa>();
        widened_ = widening == Widening::before;
        const bool again = Isa::works_aside && rows_ > Isa::most_rows;
        const bool keeps = widened_ || (widening == Widening::along && again);
        wide_ = keeps ? wide_room(panels.last - panels.first, weight_.inputs) : nullptr;
        if (widened_) widen(weight_, panels, wide_);
    }

    // The sums of a block; panels that read the same rows are computed together.
    void sum(Range panels, Range block, Piece<Isa>& piece) {
        for (index p = panels.first; p < panels.last;) {
            const bf16* x = input_of_(output_of_(p).place);
            index q = p + 1;
            while (q < panels.last && input_of_(output_of_(q).place) == x) ++q;
            const index before = (p - panels.first) * panel_width * weight_.inputs;
            const Factor factor{x + block.first * weight_.inputs, block.last - block.first, {p, q},
                                piece.at(0, p - panels.first), wide_ ? wide_ + before : nullptr,
                                widened_, rounded(x, block)};
            if (far())
                multiply<Isa::works_aside>(factor, block.first / block_rows<Isa>);
            else
                multiply<false>(factor, block.first / block_rows<Isa>);
            p = q;
        }
    }

    template <bool Far>
    void multiply(const Factor& factor, index block) {
        Fetching<Isa>& ahead = stream();
        if constexpr (Isa::works_aside) {
            const auto meanwhile = [&] {
                ahead();
                do_some();
            };
            const auto more = [&](index first, index count, const auto& adder) {
                if (!terms_.count) return;
                const auto output = [&](index n) { return output_of_(factor.panels.first + n); };
                term_tiles().add_to(adder, block, count, output(first), output(first + count - 1));
            };
            multiply_weight<Isa, Far>(shaped_, weight_, factor, meanwhile, more);
        } else {
            multiply_weight<Isa, Far>(shaped_, weight_, factor, ahead, Nothing{});
        }
    }

    void do_some() {
        if (!rest_ || rest_->next == rest_->block.last) return;
        if ((rest_->due += at_once_) < bunch) return;
        const index last = std::min(rest_->next + rest_->due, rest_->block.last);
        rest_->due = 0;
        complete(last, few);
        take(last);
    }
    void do_all() {
        if (!rest_ || rest_->next == rest_->block.last) return;
        complete(rest_->block.last, 0);
        take(rest_->block.last);
    }

    void take(index last) {
        for (index& row = rest_->next; row < last; ++row)
            rest_->take(rest_->piece, row - rest_->block.first, row);
    }

    // Scales, biases and terms of the rows before `last`, or of at least as many as `least`.
    void complete(index last, index least) {
        auto& [piece, panels, block, terms, chains, take, summed, next, due] = *rest_;
        if (summed.first >= last) return;
        const Range now{summed.first, std::max(last, std::min(summed.first + least, block.last))};
        if (weight_.bias || weight_.matrix.scales)
            for (index row = now.first; row < now.last; ++row)
                for (index p = panels.first; p < panels.last; ++p) {
                    float* sums = piece.at(row - block.first, p - panels.first);
                    store(sums, weight_.finish(load(sums), p));
                }
        if (terms.apart)
            terms.apply(piece, block, now, chains,
                        [&](int place) { return Rows{input_of_(place), weight_.inputs}; });
        summed.first = now.last;
    }

    Team& team_;
    const int thread_;
    const Weight weight_;
    const index rows_;
    const Cut cut_;
    const OutputOf& output_of_;
    const InputOf& input_of_;
    Terms<PlaceOf> terms_;
    const Finish& finish_;
    const Later& later_;
    std::optional<Rest> rests_[2];
    Rest* rest_ = nullptr;
    typename Isa::Shaped shaped_;
    bf16* wide_ = nullptr;   // room for the panels at work, if they are narrow and read again
    bool widened_ = false;   // whether they lie there already
    index asked_ = -1;  // the piece whose terms have been asked for
    index at_once_ = 1;  // rows that fall due with one step of a block
    int turn_ = 0;
};

// Computes a product with the other threads.
template <class Isa, class OutputOf, class InputOf, class PlaceOf, class Finish,
          class Later = Nothing>
void linear(Team& team, int thread, const Weight& weight, index rows, Coming coming,
            const OutputOf& output_of, const InputOf& input_of, const Terms<PlaceOf>& terms,
            const Finish& finish, const Later& later = {}) {
    Product<Isa, OutputOf, InputOf, PlaceOf, Finish, Later>(team, thread, weight, rows, output_of,
                                                            input_of, terms, finish, later)
        .compute(coming);
}

}  // namespace gw::stepping
