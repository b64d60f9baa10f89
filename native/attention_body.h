// Attention of one piece, compiled by each instruction set for itself. A query meets its keys in runs of PLACES, with the largest
// score of a run taken off, and what is found in a run is joined to what was before: each sum has one order, whoever the keys and the
// runs are shared with.
#pragma once

#include "attention_few.h"

namespace shoestring {
namespace {

// What queries found: of each the largest score, the sum of the exponentials less it, the values so weighted.
struct Sums {
    float *totals, *largest, *shares;
    Sums(float* numbers, i64 queries, i64 width) : totals(numbers), largest(numbers + queries * width), shares(largest + whole_lanes(queries)) {}
};

LANES_INLINE void clear(const Sums& sums, i64 queries, i64 width) {
    std::memset(sums.totals, 0, static_cast<std::size_t>(queries * width) * sizeof(float));
    for (i64 m = 0; m < whole_lanes(queries); ++m) {
        sums.largest[m] = -std::numeric_limits<float>::infinity();
        sums.shares[m] = 0.0f;
    }
}

// room: two of whole_lanes(queries).
LANES_INLINE void join(const Sums& to, const Sums& from, i64 queries, i64 width, float* room) {
    float *const before = room, *const now = room + whole_lanes(queries);
    for (i64 m = 0; m < whole_lanes(queries); m += LANES) {
        const V old = load(to.largest + m), top = most(load(from.largest + m), old);
        store(before + m, exponential(less(old, top)));
        store(now + m, exponential(less(load(from.largest + m), top)));
    }
    for (i64 m = 0; m < queries; ++m) {
        if (from.shares[m] == 0.0f) continue;  // it saw none of these keys
        to.largest[m] = from.largest[m] > to.largest[m] ? from.largest[m] : to.largest[m];
        to.shares[m] = to.shares[m] * before[m] + from.shares[m] * now[m];
        const V was = same(before[m]), is = same(now[m]);
        float* const total = to.totals + m * width;
        for (i64 d = 0; d < width; d += LANES) store(total + d, fused(load(from.totals + m * width + d), is, times(load(total + d), was)));
    }
}

// Keys that are looked at together, and their values: where those of the first head lie.
struct Run {
    i64 first, count;
    const char *keys[PLACES + TOGETHER], *values[PLACES + TOGETHER];
};

LANES_INLINE void find(const Side& side, const Held& held, const Row& row, i64 head, i64 first, i64 count, const char** to) {
    const i64 size = bytes_of(held.numbers);
    i64 block = first / held.block, within = first % held.block;
    for (i64 k = 0; k < count; ++block, within = 0) {
        const i64 at = row.blocks[block] * side.block_step + within * side.token_step + head * side.head_step;
        const char* from = static_cast<const char*>(side.numbers) + at * size;
        for (; within < held.block && k < count; ++within, ++k, from += side.token_step * size) to[k] = from;
    }
    for (i64 k = count; k < count + TOGETHER; ++k) to[k] = to[count - 1];  // so that four can be looked at together
}

// end: places of the row that the piece sees.
LANES_INLINE void find_run(const Piece& p, i64 number, i64 end, Run& run) {
    run.first = number * PLACES;
    run.count = end - run.first < PLACES ? end - run.first : PLACES;
    find(p.held->keys, *p.held, *p.row, p.head, run.first, run.count, run.keys);
    find(p.held->values, *p.held, *p.row, p.head, run.first, run.count, run.values);
}

// The keys, by number in a run, that the query of a token at `place` sees: low .. high - 1.
struct Seen {
    i64 low, high;
    Seen(const Heads& heads, const Run& run, i64 place) {
        low = heads.window && place + 1 - heads.window > run.first ? place + 1 - heads.window - run.first : 0;
        high = place + 1 - run.first < run.count ? place + 1 - run.first : run.count;
    }
};

// What the queries [queries, of `sharing` for each token] of one head find in a run, a few keys at a time: those of all heads lie side
// by side, so the caller goes through the heads for each few.
struct Look {
    const Piece& p;
    const Run& run;
    i64 queries, sharing, key_wide, value_wide;
    bool whole;  // each query sees all of the run
    float* room;
    i64 step() const { return PLACES + LANES; }
    i64 place(i64 m) const { return p.row->held + p.first + m / sharing; }
};

LANES_INLINE void few_scores(const Look& l, i64 head, i64 k, const float* asked, float* scores) {
    const i64 size = bytes_of(l.p.held->numbers);
    const char* from[TOGETHER];
    const float* keys[TOGETHER];
    for (i64 i = 0; i < TOGETHER; ++i) from[i] = l.run.keys[k + i] + head * l.p.held->keys.head_step * size;
    as_floats(from, l.p.held->numbers, TOGETHER, l.p.heads->key_width, l.room, keys);
    for (i64 m = 0, some; m < l.queries; m += some) {
        some = shared_by(l.queries - m);
        score(some, asked + m * l.key_wide, keys, l.key_wide, l.step(), scores + m * l.step() + k);
    }
}

// Scores become weights.
LANES_INLINE void weigh(const Look& l, float* scores, const Sums& sums) {
    for (i64 m = 0; m < l.queries; ++m) {
        const Seen seen(*l.p.heads, l.run, l.place(m));
        if (seen.high > seen.low)
            sums.shares[m] = exponentials(scores + m * l.step() + seen.low, seen.high - seen.low, sums.largest[m]);
    }
}

LANES_INLINE void few_values(const Look& l, i64 head, i64 k, const float* weights, const Sums& sums) {
    const i64 size = bytes_of(l.p.held->numbers), count = l.run.count - k < VALUES ? l.run.count - k : VALUES;
    const char* from[VALUES];
    const float* values[VALUES];
    for (i64 i = 0; i < count; ++i) from[i] = l.run.values[k + i] + head * l.p.held->values.head_step * size;
    as_floats(from, l.p.held->numbers, count, l.p.heads->value_width, l.room, values);
    for (i64 m = 0, some; m < l.queries && l.whole; m += some) {
        some = shared_by(l.queries - m);
        mix(some, weights + m * l.step() + k, l.step(), values, count, l.value_wide, sums.totals + m * l.value_wide);
    }
    for (i64 m = 0; m < l.queries && !l.whole; ++m) {
        // what a query does not see is not multiplied by zero: it may be no number
        const Seen seen(*l.p.heads, l.run, l.place(m));
        const i64 low = seen.low > k ? seen.low : k, high = seen.high < k + count ? seen.high : k + count;
        if (low < high)
            mix<1>(weights + m * l.step() + low, l.step(), values + (low - k), high - low, l.value_wide, sums.totals + m * l.value_wide);
    }
}

// The queries of each head of a piece, scaled and filled up: [head_count, queries, whole lanes].
LANES_INLINE void scaled_queries(const Piece& p, i64 sharing, float* to) {
    const Heads& h = *p.heads;
    const i64 wide = whole_lanes(h.key_width);
    const float by = static_cast<float>(h.scale);
    for (i64 head = p.head; head < p.head + p.head_count; ++head)
        for (i64 m = 0; m < p.count * sharing; ++m, to += wide) {
            const i64 token = p.row->start + p.first + m / sharing, own = head * sharing + m % sharing;
            const float* const from = p.queries + token * p.query_step + own * p.head_step;
            for (i64 d = 0; d < wide; ++d) to[d] = d < h.key_width ? from[d] * by : 0.0f;
        }
}

// Scores of some runs are left in `looked`; or, where they are there already, become weights that sum to one.
LANES_INLINE void look_at(const Piece& p) {
    const Heads& h = *p.heads;
    const i64 sharing = h.heads / h.key_value_heads, queries = p.count * sharing, step = PLACES + LANES;
    const i64 key_wide = whole_lanes(h.key_width), end = p.row->held + p.first + p.count;
    float* const asked = p.room;
    float* const scores = asked + p.head_count * queries * key_wide;
    const auto row_of = [&](i64 head, i64 m) {
        return p.looked + ((p.row->start + p.first + m / sharing) * h.heads + (p.head + head) * sharing + m % sharing) * p.most;
    };
    if (p.joins) {
        for (i64 head = 0; head < p.head_count; ++head)
            for (i64 m = 0; m < queries; ++m) {
                float* const row = row_of(head, m);
                const i64 seen = p.row->held + p.first + m / sharing + 1;
                float top;
                const float by = 1.0f / exponentials(row, seen, top);
                for (i64 k = 0; k < p.most; ++k) row[k] = k < seen ? row[k] * by : 0.0f;
            }
        return;
    }
    scaled_queries(p, sharing, asked);
    const i64 start = p.head_count * queries * step;
    for (i64 number = p.run; number < p.runs; ++number) {
        Run run;
        find_run(p, number, end, run);
        const Look l{p, run, queries, sharing, key_wide, 0, true, scores + start};
        for (i64 k = 0; k < run.count; k += TOGETHER)
            for (i64 head = 0; head < p.head_count; ++head)
                few_scores(l, head, k, asked + head * queries * key_wide, scores + head * queries * step);
        for (i64 head = 0; head < p.head_count; ++head)
            for (i64 m = 0; m < queries; ++m)
                std::memcpy(row_of(head, m) + run.first, scores + (head * queries + m) * step,
                            static_cast<std::size_t>(run.count) * sizeof(float));
    }
}

LANES_TARGET void attend_piece(const Piece& p) {
    if (p.looked) return look_at(p);
    const Heads& h = *p.heads;
    const i64 sharing = h.heads / h.key_value_heads, queries = p.count * sharing, every = queries * p.head_count;
    const i64 key_wide = whole_lanes(h.key_width), value_wide = whole_lanes(h.value_width), size = sums_of(h, queries);
    float* const asked = p.room;
    float* const scores = asked + every * key_wide;
    float* const joined = scores + every * (PLACES + LANES);
    float* const fresh = joined + p.head_count * size;
    float* const factors = fresh + p.head_count * size;
    float* const few = factors + 2 * whole_lanes(queries);
    const auto sums = [&](float* of, i64 head) { return Sums(of + head * size, queries, value_wide); };
    if (!p.joins) scaled_queries(p, sharing, asked);
    for (i64 head = 0; head < p.head_count; ++head) clear(sums(joined, head), queries, value_wide);
    const i64 position = p.row->held + p.first, end = position + p.count;
    const i64 seen = h.window && position + 1 > h.window ? (position + 1 - h.window) / PLACES : 0;
    // the heads of a token lie side by side in the engine's blocks; where they do not, only the first is fetched ahead
    const auto side_bytes = [&](const Side& side, i64 width) {
        const i64 each = vector_bytes(p.held->numbers, width);
        return (side.head_step * bytes_of(p.held->numbers) == each ? p.head_count : 1) * each;
    };
    const i64 key_bytes = side_bytes(p.held->keys, h.key_width), value_bytes = side_bytes(p.held->values, h.value_width);
    const i64 start = p.run > seen ? p.run : seen;
    Run runs[2];
    if (!p.joins && start < p.runs) find_run(p, start, end, runs[start % 2]);
    for (i64 number = start; number < p.runs; ++number) {
        float* const found = p.partial ? p.partial + (number * h.key_value_heads + p.head) * size : fresh;
        if (!p.joins) {
            const Run& run = runs[number % 2];
            Run& next = runs[(number + 1) % 2];
            if (number + 1 < p.runs) find_run(p, number + 1, end, next);
            const i64 coming = number + 1 < p.runs ? next.count : 0;
            const bool whole = Seen(h, run, position).high == run.count && Seen(h, run, end - 1).low == 0;
            const Look l{p, run, queries, sharing, key_wide, value_wide, whole, few};
            for (i64 k = 0; k < run.count; k += TOGETHER) {
                for (i64 i = k; i < k + TOGETHER && i < coming; ++i) ask(next.keys[i], key_bytes);
                for (i64 head = 0; head < p.head_count; ++head)
                    few_scores(l, head, k, asked + head * queries * key_wide, scores + head * queries * l.step());
            }
            for (i64 head = 0; head < p.head_count; ++head) {
                clear(sums(found, head), queries, value_wide);
                weigh(l, scores + head * queries * l.step(), sums(found, head));
            }
            for (i64 k = 0; k < run.count; k += VALUES) {
                for (i64 i = k; i < k + VALUES && i < coming; ++i) ask(next.values[i], value_bytes);
                for (i64 head = 0; head < p.head_count; ++head)
                    few_values(l, head, k, scores + head * queries * l.step(), sums(found, head));
            }
        }
        if (p.partial && !p.joins) continue;
        for (i64 head = 0; head < p.head_count; ++head) join(sums(joined, head), sums(found, head), queries, value_wide, factors);
    }
    if (p.partial && !p.joins) return;
    for (i64 head = 0; head < p.head_count; ++head) {
        const Sums all = sums(joined, head);
        for (i64 m = 0; m < queries; ++m) {
            const i64 token = p.row->start + p.first + m / sharing, own = (p.head + head) * sharing + m % sharing;
            float* const to = p.out + (token * h.heads + own) * h.value_width;
            const float share = 1.0f / all.shares[m];
            for (i64 d = 0; d < h.value_width; ++d) to[d] = all.totals[m * value_wide + d] * share;
        }
    }
}

}  // namespace
}  // namespace shoestring
