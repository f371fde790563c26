"""Oracle of `generation.generate` and `scoring.continuation_log_probs`.

Greedy responses must be, token for token, those of transformers' `generate` on one prompt at a
time; sampled tokens must be distributed (chi-square over 6,000 draws) like a softmax with
temperature, top-k and top-p that numpy computes here; log-probabilities must be sums of a plain
log-softmax over the text alone.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from domain_tokens.inference.decoder import Response, generate
from domain_tokens.inference.log_probs import continuation_log_probs
from domain_tokens.inference.sampling import Sampling

VOCABULARY, EOS, CONTEXT = 60, 0, 64


def gpt2():
    torch.manual_seed(3)
    shape = dict(n_layer=2, n_embd=16, n_head=4, n_positions=CONTEXT, vocab_size=VOCABULARY)
    config = GPT2Config(**shape, initializer_range=0.35, bos_token_id=EOS, eos_token_id=EOS)
    return GPT2LMHeadModel(config).eval()


def llama():
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.35,
        tie_word_embeddings=False,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


MODELS = {"gpt2": gpt2, "llama": llama}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def prompts(count, seed=0, longest=30):
    draw = np.random.default_rng(seed)
    return [
        draw.integers(1, VOCABULARY, size=int(draw.integers(1, longest))).tolist()
        for _ in range(count)
    ]


# Greedy


QUESTIONS = [*prompts(9), [5] * (CONTEXT - 3), [7] * (CONTEXT - 1), [9], [9]]


@functools.cache
def written(family):
    """What transformers writes after each question alone, up to 40 tokens or a full context."""
    model, rows = MODELS[family](), []
    for question in QUESTIONS:
        ids = torch.tensor([question])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(40, CONTEXT - len(question)),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        rows.append(whole[0, len(question) :].tolist())
    return rows


def stopped(ids, budget, eos):
    """Cut a response at EOS or at its budget; return the rest and the reason."""
    ids = ids[:budget]
    if eos in ids:
        return ids[: ids.index(eos)], "eos"
    return ids, "length" if len(ids) == budget else "context"


def an_eos(family):
    """A token that most, not all, responses of 12 tokens hold, and not as their first."""
    short = [ids[:12] for ids in written(family)]
    shares = {t: sum(t in ids[1:] for ids in short) for t in range(VOCABULARY)}
    return max((t for t in shares if shares[t] < 9), key=shares.get)


def check_greedy(generate, family, *, budgets=(1, 12, 40), sizes=(1, 5)):
    model, eos, stops = MODELS[family](), an_eos(family), set()
    for budget, size in itertools.product(budgets, sizes):
        expected = [stopped(ids, budget, eos) for ids in written(family)]
        stops.update(stop for _, stop in expected)
        responses = generate(model, QUESTIONS, eos_id=eos, max_new_tokens=budget, batch_size=size)
        assert [(list(r.token_ids), r.stop_reason) for r in responses] == expected, (budget, size)
    assert stops == {"eos", "length", "context"}, "the check has not seen everything"


@pytest.mark.parametrize("family", MODELS)
def test_greedy_responses_are_those_of_generate(family):
    check_greedy(generate, family)


def test_greedy_responses_of_the_whole_vocabulary_are_those_of_generate(tiny_model):
    """50,349 rows: the path that finds the most likely token without all logits."""
    with torch.no_grad():
        tiny_model.transformer.wte.weight[50_256] *= 2.0
    tiny_model.eval()
    draw = np.random.default_rng(1)
    questions = [draw.integers(0, 50_349, size=n).tolist() for n in (3, 17, 9, 1, 26)]
    responses = generate(tiny_model, questions, eos_id=50_256, max_new_tokens=16, batch_size=3)
    for prompt, response in zip(questions, responses, strict=True):
        ids = torch.tensor([prompt])
        written = tiny_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=50_256,
            pad_token_id=50_256,
        )[0, len(prompt) :].tolist()
        ended = written[-1] == 50_256
        assert response.token_ids == (written[:-1] if ended else written)
        assert response.stop_reason == ("eos" if ended else "length")


def with_responses(change):
    """Return a generate whose responses are changed; change gets response, prompt and budget."""

    def faulty(model, prompts, *, eos_id, max_new_tokens, batch_size):
        responses = generate(
            model, prompts, eos_id=eos_id, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        return [change(r, p, max_new_tokens) for r, p in zip(responses, prompts, strict=True)]

    return faulty


def padded(side, *, masked):
    """Return a generate that pads a batch on one side, with or without a mask, as many did."""

    @torch.no_grad()
    def faulty(model, prompts, *, eos_id, max_new_tokens, batch_size):
        responses = []
        for start in range(0, len(prompts), batch_size):
            group = prompts[start : start + batch_size]
            width = max(map(len, group))
            gaps = [[eos_id] * (width - len(p)) for p in group]
            rows = [g + p if side == "left" else p + g for g, p in zip(gaps, group, strict=True)]
            known = [[0] * len(g) + [1] * len(p) for g, p in zip(gaps, group, strict=True)]
            known = known if side == "left" else [k[::-1] for k in known]
            mask = torch.tensor(known) if masked else torch.ones(len(group), width).long()
            written = model.generate(
                torch.tensor(rows),
                attention_mask=mask,
                max_new_tokens=max(1, min(max_new_tokens, CONTEXT - width)),
                do_sample=False,
                eos_token_id=eos_id,
                pad_token_id=eos_id,
            )[:, width:].tolist()
            for prompt, ids in zip(group, written, strict=True):
                ended = eos_id in ids
                ids = ids[: ids.index(eos_id)] if ended else ids
                full = len(prompt) + len(ids) == CONTEXT
                reason = "eos" if ended else "context" if full else "length"
                responses.append(Response(ids, reason))
        return responses

    return faulty


def another_eos(model, prompts, *, eos_id, max_new_tokens, batch_size):
    return generate(model, prompts, eos_id=-1, max_new_tokens=max_new_tokens, batch_size=batch_size)


def one_more(model, prompts, *, eos_id, max_new_tokens, batch_size):
    return generate(
        model, prompts, eos_id=eos_id, max_new_tokens=max_new_tokens + 1, batch_size=batch_size
    )


GREEDY = {
    "left padding without a mask": padded("left", masked=False),
    "right padding": padded("right", masked=True),
    "EOS does not stop": another_eos,
    "one token too many": one_more,
    "EOS kept": with_responses(
        lambda r, p, n: (
            dataclasses.replace(r, token_ids=[*r.token_ids, an_eos("gpt2")])
            if r.stop_reason == "eos"
            else r
        )
    ),
    "EOS called length": with_responses(
        lambda r, p, n: (
            dataclasses.replace(r, stop_reason="length") if r.stop_reason == "eos" else r
        )
    ),
    "context called length": with_responses(
        lambda r, p, n: (
            dataclasses.replace(r, stop_reason="length") if r.stop_reason == "context" else r
        )
    ),
    "first token lost": with_responses(
        lambda r, p, n: dataclasses.replace(r, token_ids=r.token_ids[1:])
    ),
    "last token of the prompt repeated": with_responses(
        lambda r, p, n: dataclasses.replace(r, token_ids=[p[-1], *r.token_ids][:n])
    ),
}


@pytest.mark.parametrize("fault", GREEDY)
def test_wrong_greedy_decoding_is_refused(fault):
    with pytest.raises(AssertionError, match=r"\(12, 5\)"):
        check_greedy(GREEDY[fault], "gpt2", budgets=(12,), sizes=(5,))


# Sampling

DRAWS = 6000
PLANS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 8},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.5, "top_k": 20, "top_p": 0.8},
]


@torch.no_grad()
def next_distribution(model, prompt, *, temperature, top_k=None, top_p=None):
    """Softmax of logits ÷ T, over the k likeliest, over the fewest of those that hold top_p."""
    logits = model(torch.tensor([prompt]), use_cache=False).logits[0, -1].double().numpy()
    p = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-p)
    if top_k is not None:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p is not None:
        needed = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
        p[order[needed:]] = 0
    return p / p.sum()


def fits(tokens, expected):
    """Return the chi-square p of drawn tokens; 0 where one was drawn that cannot be."""
    counts = np.bincount(tokens, minlength=VOCABULARY)
    if counts[expected == 0].any():
        return 0.0
    likely = expected * len(tokens) >= 5
    seen = [*counts[likely], counts[~likely].sum()]
    due = [*expected[likely] * len(tokens), expected[~likely].sum() * len(tokens)]
    if due[-1] == 0:
        seen, due = seen[:-1], due[:-1]
    return float(chisquare(seen, due).pvalue) if len(seen) > 1 else 1.0


def draw_next(model, prompt, count, **plan):
    """Draw one token for each of `count` rows with the same prompt and seeds of their own."""
    responses = generate(
        model,
        [prompt] * count,
        eos_id=-1,
        max_new_tokens=1,
        batch_size=2000,
        sampling=Sampling(**plan, row_seeds=tuple(range(count))),
    )
    return [r.token_ids[0] for r in responses]


def check_sampling(draw, model, plan):
    prompt = [3, 14, 15, 9, 2]
    expected = next_distribution(model, prompt, **plan)
    assert (expected > 0.01).sum() > 3  # or there is nothing to tell apart
    assert fits(draw(model, prompt, DRAWS, **plan), expected) > 1e-4


def flattened(model):
    """Make a model less sure of itself."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.4)
    return model


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_sampled_tokens_are_distributed_as_computed_by_hand(model, plan):
    check_sampling(draw_next, flattened(model), plan)


def test_the_second_token_follows_the_first_as_computed_by_hand():
    """Two tokens a row: the second is drawn given the first, and not with the same noise."""
    model, prompt = flattened(gpt2()), [3, 14, 15, 9, 2]
    plan = {"temperature": 1.0, "top_k": 4}
    responses = generate(
        model,
        [prompt] * DRAWS,
        eos_id=-1,
        max_new_tokens=2,
        batch_size=2000,
        sampling=Sampling(**plan, row_seeds=tuple(range(DRAWS))),
    )
    for first in np.flatnonzero(next_distribution(model, prompt, **plan)):
        second = [r.token_ids[1] for r in responses if r.token_ids[0] == first]
        assert len(second) > 200
        assert fits(second, next_distribution(model, [*prompt, int(first)], **plan)) > 1e-4


def test_a_row_is_drawn_from_its_own_seed():
    model, questions = flattened(llama()), prompts(9, seed=5)
    seeds = tuple(range(100, 109))

    def run(order, size):
        responses = generate(
            model,
            [questions[i] for i in order],
            eos_id=EOS,
            max_new_tokens=10,
            batch_size=size,
            sampling=Sampling(1.0, row_seeds=tuple(seeds[i] for i in order)),
        )
        return {i: r.token_ids for i, r in zip(order, responses, strict=True)}

    whole = run(range(9), 9)
    assert run(range(8, -1, -1), 2) == whole
    assert run([4], 1)[4] == whole[4]
    assert len({tuple(ids) for ids in whole.values()}) > 5


def planned(change):
    return lambda model, prompt, count, **plan: draw_next(model, prompt, count, **change(plan))


def one_seed(model, prompt, count, **plan):
    """Every block of ten rows has one seed."""
    tokens = draw_next(model, prompt, count // 10, **plan)
    return list(itertools.chain.from_iterable([token] * 10 for token in tokens))


def filtered_first(model, prompt, count, temperature, top_k=None, top_p=None):
    """Top-p before the temperature."""
    p = next_distribution(model, prompt, temperature=1.0, top_k=top_k, top_p=top_p)
    p = p ** (1 / temperature)
    return np.random.default_rng(0).choice(VOCABULARY, size=count, p=p / p.sum())


def nucleus(step):
    """Top-p with one token more or fewer than it takes."""

    def faulty(model, prompt, count, temperature, top_k=None, top_p=None):
        whole = next_distribution(model, prompt, temperature=temperature, top_k=top_k)
        kept = next_distribution(model, prompt, temperature=temperature, top_k=top_k, top_p=top_p)
        p, order = whole.copy(), np.argsort(-whole)
        p[order[(kept > 0).sum() + step :]] = 0
        return np.random.default_rng(0).choice(VOCABULARY, size=count, p=p / p.sum())

    return faulty


BOTH = PLANS[-1]
SAMPLING = {
    "temperature ignored": (planned(lambda plan: plan | {"temperature": 1.0}), BOTH),
    "temperature inverted": (planned(lambda plan: plan | {"temperature": 1 / 0.7}), PLANS[1]),
    "temperature after top-p": (filtered_first, BOTH),
    "top-k one more": (planned(lambda plan: plan | {"top_k": 9}), PLANS[2]),
    "top-k one fewer": (planned(lambda plan: plan | {"top_k": 7}), PLANS[2]),
    "top-p ignored": (planned(lambda plan: plan | {"top_p": None}), PLANS[3]),
    "top-p one more": (nucleus(1), PLANS[3]),
    "top-p one fewer": (nucleus(-1), PLANS[3]),
    "seeds shared": (one_seed, PLANS[0]),
}


def test_a_nucleus_without_a_planted_fault_is_accepted():
    check_sampling(nucleus(0), flattened(gpt2()), PLANS[3])


@pytest.mark.parametrize("fault", SAMPLING)
def test_wrong_sampling_is_refused(fault):
    draw, plan = SAMPLING[fault]
    with pytest.raises(AssertionError):
        check_sampling(draw, flattened(gpt2()), plan)


# Scores


@torch.no_grad()
def plain_score(model, prompt, continuation):
    logits = model(torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
    log_p = logits.double().log_softmax(-1)
    start = len(prompt) - 1
    return sum(float(log_p[start + i, token]) for i, token in enumerate(continuation))


def check_scores(scores, model):
    questions = prompts(7, seed=8)
    several = [prompts(1 + i % 4, seed=20 + i, longest=7) for i in range(7)]
    for groups in (several, [group[:1] for group in several]):
        scored = scores(model, questions, groups)
        assert len(scored) == len(questions)
        for prompt, group, values in zip(questions, groups, scored, strict=True):
            expected = [plain_score(model, prompt, continuation) for continuation in group]
            assert values == pytest.approx(expected, abs=1e-4)


def test_scores_are_sums_of_a_plain_log_softmax(model):
    check_scores(continuation_log_probs, model)


def changed_scores(change):
    """Return scores that are computed plainly from another text; change gets both parts."""
    return lambda model, questions, groups: [
        [change(model, p, c) for c in group] for p, group in zip(questions, groups, strict=True)
    ]


SCORES = {
    "mean over tokens": changed_scores(lambda m, p, c: plain_score(m, p, c) / len(c)),
    "first token left out": changed_scores(
        lambda m, p, c: plain_score(m, [*p, c[0]], c[1:]) if c[1:] else 0.0
    ),
    "last token left out": changed_scores(lambda m, p, c: plain_score(m, p, c[:-1])),
    "the prompt counted": changed_scores(lambda m, p, c: plain_score(m, p[:1], [*p[1:], *c])),
    "one token of the prompt unseen": changed_scores(lambda m, p, c: plain_score(m, p[1:] or p, c)),
    "off by one": changed_scores(lambda m, p, c: plain_score(m, [*p, 0], c)),
    "in bits": changed_scores(lambda m, p, c: plain_score(m, p, c) / np.log(2)),
}


def test_scores_without_a_planted_fault_are_accepted():
    check_scores(changed_scores(plain_score), llama())


@pytest.mark.parametrize("fault", SCORES)
def test_wrong_scores_are_refused(fault):
    with pytest.raises(AssertionError):
        check_scores(SCORES[fault], llama())
