// Groups of panels that the threads of a team take in turns: whoever is held up, by another program
// or by memory, takes fewer.
#pragma once

#include <atomic>
#include <vector>

#include "common.h"

namespace gw {

class Turns {
   public:
    // Panels between `edges`, which are in order, in groups of about equal size, at most `most`, that
    // no edge divides: about as many groups for each worker, and two or more unless these would be
    // so small that rows are read for few panels.
    Turns(const std::vector<index>& edges, index most, index workers) : workers_(workers) {
        const index all = edges.back() - edges.front();
        const index least = std::min(2 * workers, all / worth_a_turn);
        const index unit = most % 2 ? 1 : 2;  // panels whose outputs fill a line of cache
        const index wanted = padded_to(std::max((all + most - 1) / most, least), workers);
        for (std::size_t e = 0; e + 1 < edges.size(); ++e) {
            const index panels = edges[e + 1] - edges[e], units = (panels + unit - 1) / unit;
            const index fair = std::min(units, (panels * wanted + all / 2) / all);
            const index groups = std::max((panels + most - 1) / most, fair);
            for (index g = 0; g < groups; ++g) {
                const auto [first, last] = share(units, g, groups);
                groups_.push_back({edges[e] + first * unit,
                                   edges[e] + std::min(last * unit, panels)});
            }
        }
    }

    // Calls act(group, next) until no group is left; `next` is likely to be the caller's next one.
    template <class Act>
    void take(Act&& act) {
        for (std::size_t g; (g = taken_.fetch_add(1, std::memory_order_relaxed)) < groups_.size();)
            act(groups_[g], g + workers_ < groups_.size() ? groups_[g + workers_] : Range{});
    }

   private:
    static constexpr index worth_a_turn = 16;  // panels

    std::vector<Range> groups_;
    std::size_t workers_;
    std::atomic<std::size_t> taken_{0};
};

}  // namespace gw
