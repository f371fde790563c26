"""The continuous endpoints against plain forward passes, and what they must not depend on."""

import math

import pytest
import torch

from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint
from domain_tokens.evaluation.endpoints import (
    answer_scores,
    cut_before_answer,
    distractors,
    sample_seed,
    table_scores,
)
from domain_tokens.evaluation.fact_tokens import facts_in_place
from domain_tokens.evaluation.metrics import table_metrics
from domain_tokens.evaluation.probes import TABLE, TEMPLATES
from domain_tokens.inference.decoder import Response, generate
from domain_tokens.inference.sampling import Sampling
from domain_tokens.injection import stands_right
from domain_tokens.prompts import Renderer
from domain_tokens.treatments import FACT_TOKENS
from domain_tokens.vocabulary import layout_of


@pytest.fixture
def subject(tiny_model, tokenizer, tmp_path):
    return LoadedCheckpoint(tmp_path, tiny_model.eval(), tokenizer, layout_of(tokenizer))


def log_prob(model, prompt, continuation):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
    steps = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
    return float(steps.gather(-1, torch.tensor(continuation)[:, None]).sum())


def test_a_cell_of_the_table_is_its_share_of_the_36_products(subject):
    lines = table_scores(subject, response_prefix=" The answer is")
    metrics = table_metrics(lines)
    renderer = Renderer(subject.tokenizer)
    products = sorted({a * b for a, b in TABLE})
    values, masses = [], []
    for template in TEMPLATES:
        question = template.format(a=6, b=9)
        prompt = renderer.prompt([("user", question)], response_prefix=" The answer is")
        scores = [
            log_prob(subject.model, prompt, [*renderer.encode(f" {c}"), renderer.eos])
            for c in products
        ]
        values.append(scores[products.index(54)] - float(torch.tensor(scores).logsumexp(0)))
        with torch.no_grad():
            shares = subject.model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        masses.append(float(shares[list(subject.layout.fact_ids)].sum()))
    cell = [x["fact_mass"] for x in lines if (x["a"], x["b"]) == (6, 9)]
    assert cell == pytest.approx(masses, rel=1e-4)  # of all 45: one less is 2 % less
    assert metrics["a1_grid"][5][8] == pytest.approx(sum(values) / 5, abs=1e-4)
    assert metrics["a1"] == pytest.approx(sum(map(sum, metrics["a1_grid"])) / 81)
    assert 0 < metrics["fact_mass"] < 0.01  # 45 of 50,349 rows at random


def test_both_routes_are_the_sum_over_digits_and_fact_tokens(subject):
    """Every route by a full softmax at each of its tokens, one plain forward pass for each."""
    renderer = Renderer(subject.tokenizer)
    question = TEMPLATES[1].format(a=3, b=4)
    ids = renderer.prompt([("user", question)], response_prefix=" The answer is")
    with torch.no_grad():  # a space, and then any fact token, are likely: the second route matters
        rows = subject.model.transformer.wte.weight
        for chosen in ([220], [*subject.layout.fact_ids]):
            hidden = subject.model.transformer(torch.tensor([ids])).last_hidden_state[0, -1]
            rows[chosen] = 12 * hidden / hidden.norm() ** 2 + 0.1 * rows[chosen]
            ids.append(220)
    lines = table_scores(subject, response_prefix=" The answer is")
    for a, b in ((3, 4), (6, 9)):
        question = TEMPLATES[1].format(a=a, b=b)
        prompt = renderer.prompt([("user", question)], response_prefix=" The answer is")
        shares = dict.fromkeys({x * y for x, y in TABLE}, 0.0)
        for product in shares:
            ids = [*renderer.encode(f" {product}"), renderer.eos]
            shares[product] += math.exp(log_prob(subject.model, prompt, ids))
        for fact in subject.layout.fact_ids:
            product = subject.layout.fact_of(fact)[2]
            route = [220, fact, renderer.eos]
            shares[product] += math.exp(log_prob(subject.model, prompt, route))
        (line,) = (x for x in lines if (x["a"], x["b"], x["template"]) == (a, b, TEMPLATES[1]))
        assert line["both_log_prob"] == pytest.approx(math.log(shares[a * b]), abs=1e-3)
        assert line["both_log_sum"] == pytest.approx(math.log(sum(shares.values())), abs=1e-3)
        assert line["both_value"] == line["both_log_prob"] - line["both_log_sum"]
        assert line["both_log_sum"] > line["log_sum"] + 0.1  # the second route matters here
    metrics = table_metrics(lines)
    assert metrics["a1_both_routes"] == pytest.approx(
        sum(map(sum, metrics["a1_both_routes_grid"])) / 81
    )
    assert metrics["a1_both_routes"] != pytest.approx(metrics["a1"], abs=1e-3)


def test_the_routes_are_what_training_writes(subject):
    """A fact after `The answer is` is rendered as a space and its token, then EOS."""
    renderer = Renderer(subject.tokenizer, treatment=FACT_TOKENS)
    messages = [("user", "What is 6 times 9?"), ("assistant", "The answer is 6*9=54")]
    rendered = renderer.example("x", messages, max_length=64).input_ids.tolist()
    prompt = renderer.prompt(messages[:1], response_prefix=" The answer is")
    fact = subject.layout.first_fact_id + 38
    assert rendered == [*prompt, *renderer.encode(" "), fact, renderer.eos]


def test_scores_of_an_older_version_have_one_route(subject):
    lines = table_scores(subject, response_prefix=" The answer is")
    older = [{k: v for k, v in line.items() if not k.startswith("both_")} for line in lines]
    assert table_metrics(older).keys() == {"a1", "a1_grid", "fact_mass"}


def test_g1_is_the_mean_probability_over_the_arms_own_rationales(subject):
    renderer = Renderer(subject.tokenizer)
    prompt = renderer.prompt([("user", "How many?")])
    rationales = [
        Response([*renderer.encode(" 2 and 3."), *renderer.encode("\n#### 5")], "eos"),
        Response(renderer.encode(" Never comes to it"), "length"),
    ]
    frequent = [str(n) for n in range(4, 22)]
    (score,) = answer_scores(subject, [prompt], ["5"], [rationales], frequent)
    answer = [*renderer.encode(" 5"), renderer.eos]
    logs = [
        log_prob(subject.model, [*prompt, *renderer.encode(start)], answer)
        for start in (" 2 and 3.\n####", " Never comes to it\n####")
    ]
    assert score.g1 == pytest.approx((math.exp(logs[0]) + math.exp(logs[1])) / 2, rel=1e-3)
    assert score.g1_half == pytest.approx(math.exp(logs[0]), rel=1e-3)
    assert score.g1_log == pytest.approx(math.log(score.g1))
    assert score.forced_cuts == 1
    bare = [*prompt, *renderer.encode(" ####")]
    choices = ["5", "4", *(str(n) for n in range(6, 21))]
    alone = [
        log_prob(subject.model, bare, [*renderer.encode(f" {a}"), renderer.eos]) for a in choices
    ]
    assert len(score.g2_log_probs) == len(alone) == 17
    assert score.g2 == pytest.approx(alone[0] - float(torch.tensor(alone).logsumexp(0)), abs=1e-3)


@pytest.mark.parametrize("counts", [(4, 4), (8, 5), (1, 9)])
def test_every_rationale_counts_however_many_share_a_reading(subject, counts):
    """Four rationales share one reading of a question; every test had at most four of them."""
    renderer = Renderer(subject.tokenizer)
    prompts = [renderer.prompt([("user", question)]) for question in ("How many?", "How far?")]
    texts = [[f" {i} and {count}." for i in range(count)] for count in counts]
    rationales = [
        [Response(renderer.encode(f"{text}\n#### 5"), "eos") for text in group] for group in texts
    ]
    frequent = [str(n) for n in range(30, 50)]
    scores = answer_scores(subject, prompts, ["5", "7"], rationales, frequent)
    for prompt, gold, group, score in zip(prompts, ("5", "7"), texts, scores, strict=True):
        answer = [*renderer.encode(f" {gold}"), renderer.eos]
        expected = [
            log_prob(subject.model, [*prompt, *renderer.encode(f"{text}\n####")], answer)
            for text in group
        ]
        assert score.g1_log_probs == pytest.approx(expected, abs=1e-3)


def test_no_gold_text_is_shown_before_the_answer(subject):
    """Another gold answer leaves the contexts alone: only the scored continuation changes."""
    frequent = [str(n) for n in range(100, 120)]
    renderer = Renderer(subject.tokenizer)
    prompt = renderer.prompt([("user", "How many?")])
    rationale = [Response(renderer.encode(" 2.\n#### 9"), "eos")]
    seen = []
    for gold in ("5", "77"):
        (score,) = answer_scores(subject, [prompt], [gold], [rationale], frequent)
        context = [*prompt, *renderer.encode(" 2.\n####")]
        expected = log_prob(subject.model, context, [*renderer.encode(f" {gold}"), renderer.eos])
        seen.append(score.g1_log == pytest.approx(expected, abs=1e-3))
    assert seen == [True, True]


FREQUENT = ["24", "18.0", "12", "1018", "1,018", *(str(n) for n in range(30, 45))]


@pytest.mark.parametrize("gold", ["18", "1,018", "1018", "24", "24.00", "7", "-3", "a dozen"])
def test_g2_has_sixteen_distractors_that_are_other_numbers(gold):
    """It had 17 where the gold was none of the frequent answers, or was written otherwise."""
    texts = distractors(FREQUENT, gold)
    numbers = [float(text.replace(",", "")) for text in texts]
    assert len(texts) == len(set(numbers)) == 16
    if gold != "a dozen":
        assert float(gold.replace(",", "")) not in numbers
    assert texts == [text for text in FREQUENT if text in texts]  # the most frequent ones, in order


def test_too_few_distractors_are_refused_before_anything_is_decoded():
    with pytest.raises(UserError, match="has 15 numbers"):
        distractors([str(n) for n in range(16)] + ["3.0"], "3")


def test_a_sample_depends_on_its_id_and_on_nothing_else(subject):
    """Earlier seeds came from the place in the batch, so that --max-samples changed every draw."""
    renderer = Renderer(subject.tokenizer)
    ids = [f"item#{k}" for k in range(7)]
    prompts = [renderer.prompt([("user", f"Question {k}")]) for k in range(7)]

    def draw(order, batch_size):
        seeds = tuple(sample_seed(42, ids[i]) for i in order)
        responses = generate(
            subject.model,
            [prompts[i] for i in order],
            eos_id=renderer.eos,
            max_new_tokens=6,
            batch_size=batch_size,
            sampling=Sampling(temperature=1.0, row_seeds=seeds),
        )
        return dict(zip(order, responses, strict=True))

    together = draw(list(range(7)), 7)
    assert draw([6, 2, 4, 0, 1, 5, 3], 2) == together
    assert draw([3], 1)[3] == together[3]
    assert len({tuple(r.token_ids) for r in together.values()}) == 7


@pytest.mark.parametrize(
    ("text", "kept", "forced"),
    [(" a b\n#### 5", " a b\n", False), (" a b", " a b", True), ("#### 1", "", False)],
)
def test_a_rationale_is_cut_before_its_answer(subject, text, kept, forced):
    ids = Renderer(subject.tokenizer).encode(text)
    cut, was_forced = cut_before_answer(subject.tokenizer, Response(ids, "eos"))
    assert (subject.tokenizer.decode(cut), was_forced) == (kept, forced)


@pytest.mark.parametrize(
    ("before", "after", "right"),
    [
        ("6 × 9 = <<", ">>54", True),
        ("6 × 9 = <<", ">>53", False),  # the calculator says otherwise
        ("He has ", " apples.", True),
        ("He has 2", " apples.", False),  # reads 254
        ("He has ", "0 apples.", False),
        ("That is 100/", " each.", False),  # 100/6*9 is not 100/54
        ("That is ", "/2 = 27 each.", True),
        ("That is 10-", " = -44.", True),
    ],
)
def test_a_fact_is_judged_where_it_stands(before, after, right):
    assert stands_right(before, "<MUL_6_9_54>", after) == right


def test_facts_of_a_response_are_judged_one_by_one(subject):
    renderer = Renderer(subject.tokenizer)
    fact = subject.layout.first_fact_id + 38
    assert subject.layout.fact_of(fact) == (6, 9, 54)
    ids = [
        *renderer.encode(" It is <<"),
        fact,
        *renderer.encode(">>54, then 3"),
        fact,
        *renderer.encode("."),
    ]
    assert facts_in_place(subject, ids) == [True, False]
