"""What a decoding step on a CPU does between its matrix products, in fp32, compiled by numba.

For attention torch makes a small matrix product for every slot and head, which takes several times
as long as reading the cache; here a page is read once for all queries that share its head. Norms
and rotations of a few dozen tokens are too small for torch's operations. G queries share a head of
the cache, L positions, D size of a head, N tokens, W width, V tokens of the vocabulary.
"""

import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

# GNU's OpenMP first: torch uses it, too, and two kinds of waiting threads get in each other's way.
config: Any = numba.config
config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

PAGE = 32  # positions; of 16, reading them took a quarter longer
LINE = 16  # numbers that come from memory at once
STRETCH = 1024  # tokens of the vocabulary that are looked at together
LOG2_E = np.float32(1.4426950408889634)
# 2^f for f in [-1/2, 1/2], by Taylor: an error of 2e-8, less than a rounding in fp32.
C1, C2, C3 = (
    np.float32(0.6931471805599453),
    np.float32(0.2402265069591007),
    np.float32(0.0555041087),
)
C4, C5, C6 = np.float32(0.00961812911), np.float32(0.00133335581), np.float32(0.000154035304)
LEAST = np.float32(-126)  # of exponents that a normal number has in fp32
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


def use_threads(count: int) -> None:
    """Use so many threads, as torch does, or fewer if there are fewer."""
    numba.set_num_threads(min(count, config.NUMBA_NUM_THREADS))


def _ask(typing: Any, block: Any, row: Any, column: Any) -> Any:
    """Ask memory for the line of block [R, C] that holds a number, to the second cache.

    A processor foresees what is read in a row, but not where the next page of a slot lies. Asked
    into its first cache, it would wait for the few lines that may be under way there.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, values[0])
        pointer = cgutils.get_item_pointer(context, builder, signature.args[0], array, values[1:])
        address, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # to read, with little use after it, data
        settings = [number(0), number(1), number(1)]
        builder.call(function, [builder.bitcast(pointer, address), *settings])
        return context.get_dummy_value()

    return types.void(block, row, column), code


_ask_for: Any = intrinsic(_ask)


def can_cache() -> bool:
    """Return whether numba finds a folder where it may keep compiled loops, or can be given one.

    Tried are the one next to this file, the user's, and at last one next to Hugging Face's caches:
    a checkout may be of another user, or mounted to be read only.
    """
    from huggingface_hub import constants

    for folder in (config.CACHE_DIR, str(Path(constants.HF_HOME) / "domain_tokens" / "numba")):
        config.CACHE_DIR = folder
        try:
            numba.njit(cache=True)(use_threads)
        except RuntimeError:  # "no locator available"
            continue
        return True
    config.CACHE_DIR = ""
    print("note: no folder for compiled loops can be written; set NUMBA_CACHE_DIR", file=sys.stderr)
    return False


CACHE = can_cache()
# Functions of their own, not inlined: only so are their innermost loops vectorised.
_compiled = numba.njit(fastmath=True, error_model="numpy", cache=CACHE, inline="never")


@_compiled
def _score(queries, block, scores, at, count, following):
    """Write products of queries [G, D] with `count` positions of block [PAGE, D] to scores[:, at:].

    following: the block that will be read next.
    """
    size = queries.shape[1]
    for j in range(count):
        for d in range(0, size, LINE):
            _ask_for(following, j, d)
        for g in range(len(queries)):
            total = ZERO
            for d in range(size):
                total += queries[g, d] * block[j, d]
            scores[g, at + j] = total


@_compiled
def _add(sums, block, shares, at, count, following):
    """Add `count` positions of block [PAGE, D] to sums [G, D], by their shares[:, at:]."""
    size = sums.shape[1]
    four = count // 4 * 4
    for j in range(0, four, 4):  # four at once: sums are read and written a quarter as often
        for row in range(j, j + 4):
            for d in range(0, size, LINE):
                _ask_for(following, row, d)
        for g in range(len(sums)):
            a, b = shares[g, at + j], shares[g, at + j + 1]
            c, d = shares[g, at + j + 2], shares[g, at + j + 3]
            for i in range(size):
                sums[g, i] += (a * block[j, i] + b * block[j + 1, i]) + (
                    c * block[j + 2, i] + d * block[j + 3, i]
                )
    for j in range(four, count):
        for g in range(len(sums)):
            share = shares[g, at + j]
            for i in range(size):
                sums[g, i] += share * block[j, i]


@_compiled
def _exp2(x, exponents, powers):
    """Raise 2 to each x [L], at most 126; powers is the memory of exponents, as fp32."""
    for j in range(len(x)):  # 2^x = 2^whole * 2^part
        score = max(x[j], LEAST)
        whole = np.floor(score + HALF)
        part = score - whole
        exponents[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        x[j] = ONE + part * (C1 + part * (C2 + part * (C3 + part * (C4 + part * (C5 + part * C6)))))
    for j in range(len(x)):
        x[j] *= powers[j]


@_compiled
def _softmax(scores, exponents, powers):
    """Turn scores [L], logarithms to base 2, into shares; the others as `_exp2` has them."""
    max_score = scores[0]
    for j in range(len(scores)):
        max_score = max(max_score, scores[j])
    for j in range(len(scores)):
        scores[j] -= max_score
    _exp2(scores, exponents, powers)
    total = ZERO
    for j in range(len(scores)):
        total += scores[j]
    for j in range(len(scores)):
        scores[j] /= total


@_compiled
def _gate(x, slope, cubic, out, exponents, powers):
    """Write x [L], times the logistic function of slope * (x + cubic * x^3), to out [L]."""
    slope = -slope * LOG2_E
    for j in range(len(x)):
        out[j] = min(slope * (x[j] + cubic * x[j] * x[j] * x[j]), -LEAST)
    _exp2(out, exponents, powers)
    for j in range(len(x)):
        out[j] = x[j] / (ONE + out[j])


@numba.njit(parallel=True, fastmath=True, error_model="numpy", cache=CACHE)
def gate(x, slope, cubic, out):
    """Write x [N, W], times the logistic function of slope * (x + cubic * x^3), to out [N, W].

    Where x is twice as wide its second half is multiplied in.
    """
    width = out.shape[1]
    for n in numba.prange(len(x)):
        exponents = np.empty(width, np.int32)
        _gate(x[n, :width], slope, cubic, out[n], exponents, exponents.view(np.float32))
        if x.shape[1] > width:
            for i in range(width):
                out[n, i] *= x[n, width + i]


@numba.njit(parallel=True, fastmath=True, error_model="numpy", cache=CACHE)
def attend_pages(query, new, pool, layer, where, scaling, out):
    """Store new keys and values, then let every token attend to its slot, up to itself.

    N tokens in the order of A slots, K heads of the cache, H of the queries, P pages. query, out:
    [N, H, D]; new: a pair of keys and values, [N, K, D]; pool: [P, layers, 2, K, PAGE, D], where 0
    is keys and 1 values; all fp32. where: table, int32 [A or more, M], each slot's pages; first,
    int32 [A + 1], where its tokens begin; known, int32 [A], how many it holds already.
    """
    table, first, known = where
    key, value = new
    heads, size = key.shape[1:]
    shared = query.shape[1] // heads
    tasks = (len(first) - 1) * heads
    for task in numba.prange(tasks):
        slot, head = task // heads, task % heads
        then = min(task + 1, tasks - 1)
        after = pool[table[then // heads, 0], layer, 0, then % heads]  # what is read after this
        begin, end, before = first[slot], first[slot + 1], known[slot]
        for n in range(begin, end):
            page, at = divmod(before + n - begin, PAGE)
            pool[table[slot, page], layer, 0, head, at] = key[n, head]
            pool[table[slot, page], layer, 1, head, at] = value[n, head]
        max_keys = before + end - begin
        scores = np.empty((shared, max_keys), np.float32)
        exponents = np.empty(max_keys, np.int32)
        powers = exponents.view(np.float32)
        for n in range(begin, end):
            seen = before + n - begin + 1
            group = slice(head * shared, (head + 1) * shared)
            queries = query[n, group] * (scaling * LOG2_E)
            pages = -(-seen // PAGE)
            for number in range(pages):
                at, page = number * PAGE, table[slot, number]
                last = number + 1 == pages
                following = pool[table[slot, 0 if last else number + 1], layer, int(last), head]
                block = pool[page, layer, 0, head]
                _score(queries, block, scores, at, min(PAGE, seen - at), following)
            for g in range(shared):
                _softmax(scores[g, :seen], exponents, powers)
            sums = np.zeros((shared, size), np.float32)
            for number in range(pages):
                at, page = number * PAGE, table[slot, number]
                last = number + 1 == pages
                following = after if last else pool[table[slot, number + 1], layer, 1, head]
                block = pool[page, layer, 1, head]
                _add(sums, block, scores, at, min(PAGE, seen - at), following)
            out[n, group] = sums


@numba.njit(parallel=True, fastmath=True, error_model="numpy", cache=CACHE)
def rms_norm(x, weight, epsilon, out):
    """Write x [N, W], divided by its root mean square and times weight [W], to out."""
    for n in numba.prange(len(x)):
        total = ZERO
        for i in range(x.shape[1]):
            total += x[n, i] * x[n, i]
        scale = ONE / np.sqrt(total / np.float32(x.shape[1]) + epsilon)
        for i in range(x.shape[1]):
            out[n, i] = x[n, i] * scale * weight[i]


@numba.njit(parallel=True, fastmath=True, error_model="numpy", cache=CACHE)
def rotate(x, cos, sin, heads):
    """Turn pairs (i, i + D / 2) of x's first heads in place: [N, H, D]; cos, sin: [N, D / 2]."""
    half = cos.shape[1]
    for n in numba.prange(len(x)):
        for h in range(heads):
            for i in range(half):
                a, b = x[n, h, i], x[n, h, i + half]
                x[n, h, i] = a * cos[n, i] - b * sin[n, i]
                x[n, h, i + half] = b * cos[n, i] + a * sin[n, i]


@_compiled
def _max(x):
    """Return the largest of x [L]."""
    largest = x[0]
    for j in range(len(x)):
        largest = max(largest, x[j])
    return largest


@_compiled
def _max_above(x, first, a, second, b):
    """Return the largest of x + first * a + second * b, with x, a and b [L]."""
    largest = x[0] + first * a[0] + second * b[0]
    for j in range(len(x)):
        largest = max(largest, x[j] + first * a[j] + second * b[j])
    return largest


@_compiled
def _product(a, b):
    """Return the inner product of a and b [L]."""
    total = ZERO
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@numba.njit(parallel=True, fastmath=True, error_model="numpy", cache=CACHE)
def largest_logits(approximate, rows, tokens, factors, out):
    """Write to out [N] the first of the largest logits' tokens, from logits that are nearly right.

    approximate: [N, V], logits in units of each row's scale. A logit is at most its approximation +
    off * length + size * error, with rows: off, size and scale, [N] each, the first two in units of
    the third; tokens: length and error, [V] each. factors: hidden [N, W] and weight [V, W], whose
    products are the logits. All fp32.
    """
    off, size, scale = rows
    length, error = tokens
    hidden, weight = factors
    count = approximate.shape[1]
    for n in numba.prange(len(approximate)):
        best, max_logit = 0, approximate[n, 0]
        for start in range(0, count, STRETCH):
            end = min(start + STRETCH, count)
            here = _max(approximate[n, start:end])
            if here > max_logit:
                max_logit = here
                for v in range(start, end):
                    if approximate[n, v] == here:
                        best = v
                        break
        max_logit = _product(hidden[n], weight[best])
        for start in range(0, count, STRETCH):
            end = min(start + STRETCH, count)
            enough = max_logit / scale[n]
            parts = length[start:end], error[start:end]
            above = _max_above(approximate[n, start:end], off[n], parts[0], size[n], parts[1])
            if above < enough:
                continue
            for v in range(start, end):
                if approximate[n, v] + off[n] * length[v] + size[n] * error[v] >= enough:
                    logit = _product(hidden[n], weight[v])
                    if logit > max_logit or (logit == max_logit and v < best):
                        best, max_logit = v, logit
        out[n] = best
