"""The calculator: right results while decoding, in every batch alike; forbidden tokens."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from domain_tokens.checkpoints import load_tokenizer
from domain_tokens.data.demo_problems import problem_rows
from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import evaluation_identity
from domain_tokens.evaluation.verification import verify_results, verify_tokens
from domain_tokens.inference.decoder import _Scheduler, generate
from domain_tokens.inference.forced_tokens import Calculator, Constraints, result_of
from domain_tokens.inference.noise import noise_keys
from domain_tokens.inference.sampling import GREEDY, Sampling, choose
from domain_tokens.injection import find_facts
from domain_tokens.runs.files import file_digest, read_json, read_lines
from tests.conftest import call, edit
from tests.small_models import hf_tokenizer

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "gsm8k"
LENGTH = 40  # new tokens


@pytest.mark.parametrize(
    ("text", "facts", "all_"),
    [
        ("6*9=", "54", "54"),
        ("so 6 * 9 =", " 54", " 54"),
        ("6*9= ", "54", "54"),
        ("6 × 9 = $", "54", "54"),
        ("3 x 4 =", " 12", " 12"),
        ("3x4=", "12", "12"),
        ("<<6·9=", "54", "54"),
        ("- 6*9=", "54", "54"),  # a list item
        ("$6*9=", "54", "54"),
        ("6*$9 = <", "54", "54"),
        ("12=3*4=", "12", "12"),
        ("She has 5, 6*9=", "54", "54"),
        ("end.\n6*9=", "54", "54"),
        ("54>>54*2=", None, "108"),
        ("16*9=", None, "144"),
        ("6.5*9=", None, "58.5"),
        ("1,204*3=", None, "3612"),
        ("0*5=", None, "0"),
        ("5-8=", None, "-3"),
        ("7/2=", None, "3.5"),
        ("2.50*4=", None, "10"),
        ("1/3=", None, None),  # no decimal
        ("10/0=", None, None),
        ("2*6*9=", None, None),
        ("10 - 6*9 =", None, None),
        ("-6*9=", None, None),
        ("2 x 3 x 4 =", None, None),
        ("plus 6*9=", None, None),
        ("1 6*9=", None, None),
        ("(1+2)*6*9=", None, None),
        ("<MUL_6_9_54>*6*9=", None, None),
        ("20% 6*9=", None, None),
        ("2x6*9=", None, None),
        ("6**9=", None, None),
        ("6*9==", None, None),
        ("6*9=5", None, None),
        ("6*9", None, None),
        ("1234567890123*2=", None, None),
    ],
)
def test_what_triggers(text, facts, all_):
    assert (result_of(text, "facts"), result_of(text, "all")) == (facts, all_)


def solutions():
    """Solutions as the demo writes them, and GSM8K's where it lies next to the checkout."""
    rows = [row["answer"] for row in problem_rows(300, 1, "train")]
    for name in ("train", "test"):
        path = SHARED / f"{name}.jsonl"
        rows += [json.loads(line)["answer"] for line in path.open()] if path.exists() else []
    return rows


def test_facts_are_completed_where_the_injector_would_put_their_token():
    """The ceiling is that of the treatment: the same matches, found by other rules."""
    count = missed = 0
    for text in solutions():
        for fact in find_facts(text):
            at = text.rfind("=", fact.start, fact.end) + 1
            if fact.form == "equation":
                count += 1
                missed += (result_of(text[:at], "facts") or "").strip() != str(fact.product)
    assert count > 200
    assert missed <= count / 200  # a few stand after a word that may bind, as `of 6*9=54`


def test_no_right_solution_is_contradicted():
    """Where a solution goes on with another number than the calculator, the solution is wrong."""
    agree = differ = 0
    for text in solutions():
        for match in re.finditer(r"= ?\$?(?=([0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?![0-9%]))", text):
            result = result_of(text[: match.end()], "all")
            if result is not None:
                same = float(result) == float(match[1].replace(",", ""))
                agree, differ = agree + same, differ + (not same)
    assert agree > 500
    assert differ <= agree / 500


def steered(tokenizer, script, strength):
    """A random model that mostly writes a script: each position's row points at a token."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2,
        n_embd=64,
        n_head=4,
        n_positions=128,
        vocab_size=len(tokenizer),
        initializer_range=0.15,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    ids = tokenizer.encode(script)
    with torch.no_grad():
        rows = torch.nn.functional.normalize(model.transformer.wte.weight, dim=-1)
        model.transformer.wte.weight.copy_(rows)
        model.transformer.wpe.weight.copy_(
            strength * rows[[ids[at % len(ids)] for at in range(config.n_positions)]]
        )
    return model


def naively(model, prompts, constraints, sampling):
    """Decode each prompt alone, reading all of it again for each token."""
    responses = []
    for index, prompt in enumerate(prompts):
        written = []
        while len(written) < LENGTH:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *written]]), use_cache=False).logits[:, -1]
            place = torch.tensor([len(written)])
            keys = noise_keys(torch.tensor([sampling.stream(index)]), place)

            def pick(logits, keys=keys):
                return choose(logits, keys, sampling)

            (token,) = constraints.choose(logits, [written], pick)
            if token == 0:
                break
            written.append(token)
        responses.append(written)
    return responses


STANDING = re.compile(r"(?:^|[a-z] |\n|<<)([1-9]) ?[*×] ?([1-9]) ?= ?\$?(-?[0-9.,]*[0-9])")


def check(script, *, kind="facts", digits=True, strength=8.0, sampling=GREEDY):
    """Assert what the calculator promises; return how many results it can be seen at."""
    tokenizer = hf_tokenizer(digits=digits)
    model = steered(tokenizer, script, strength)
    constraints = Constraints(calculator=Calculator(tokenizer, kind))
    prompts = [tokenizer.encode("a" * length) for length in (3, 1, 5, 3, 2)]
    words = {"eos_id": 0, "max_new_tokens": LENGTH, "sampling": sampling}
    one, three, all_ = (
        generate(model, prompts, batch_size=size, constraints=constraints, **words)
        for size in (1, 3, 5)
    )
    assert one == three == all_
    assert [r.token_ids for r in one] == naively(model, prompts, constraints, sampling)
    seen = 0
    for response in one:
        assert constraints.broken_at(response.token_ids) is None
        text = tokenizer.decode(response.token_ids)
        for match in STANDING.finditer(text):
            if match.end() < len(text) - 1:  # the last one may be unfinished
                assert match[3].rstrip(".,") == str(int(match[1]) * int(match[2])), text
                seen += 1
    return seen


PIECES = ["6*9=", "6 * 9 =", "a 3×4 = $", "<<3*4=", "48", ">>", " and ", "\n", "12*3=", "7*8=", "4"]


@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=2, max_size=6),
    kind=st.sampled_from(["facts", "all"]),
    digits=st.booleans(),
    strength=st.sampled_from([5.0, 8.0]),
    sampled=st.booleans(),
)
@settings(deadline=None, max_examples=15, derandomize=True)
def test_results_are_right_in_every_batch(pieces, kind, digits, strength, sampled):
    """With drafts, without, greedy and sampled, whatever pieces a tokenizer makes of a number."""
    sampling = Sampling(temperature=0.7, seed=3) if sampled else GREEDY
    check("".join(pieces), kind=kind, digits=digits, strength=strength, sampling=sampling)


SCRIPT = "so 6*9=48\nso 3 × 4 = 16\n"


@pytest.mark.parametrize("digits", [True, False])
def test_the_property_is_not_vacuous(digits, monkeypatch):
    """Results are seen, and drafts hold some of them."""
    passes = []
    monkeypatch.setattr(
        _Scheduler,
        "_decode",
        lambda self, step=_Scheduler._decode: passes.append(1) or step(self),
    )
    assert check(SCRIPT, digits=digits) >= 10
    # Batch sizes 1, 3 and 5 of five rows would take 5, 2 and 1 times LENGTH - 1 passes.
    assert len(passes) < 0.9 * 8 * (LENGTH - 1)


def test_a_digit_does_not_make_a_result_another_number():
    assert check("so 6*9=5400") >= 5
    assert check("so 6*9=54.5") >= 5


@pytest.mark.parametrize("fault", ["digits", "drafts", "begins"])
def test_planted_faults_are_found(fault, monkeypatch):
    honest = Constraints.choose
    if fault == "digits":  # may follow a result
        monkeypatch.setattr(
            Calculator, "digit_ids", property(lambda self: [], lambda s, v: None), raising=False
        )
    elif fault == "drafts":  # a step looks at its shortest row only

        def choose(self, logits, written, pick):
            shortest = [min(len(w) for w in written)] * len(written)
            cut = [w[:count] for w, count in zip(written, shortest, strict=True)]
            return honest(self, logits, cut, pick)

        monkeypatch.setattr(Constraints, "choose", choose)
    else:  # the first token of a result is the model's own
        monkeypatch.setattr(Calculator, "may_stand", lambda self, written, token: True)
    with pytest.raises(AssertionError):
        check("so 6*9=5400\nso 7*8=42\n")


def test_an_annotation_may_begin_where_a_result_would_stand():
    """GSM8K writes `6*9 = $<<6*9=54>>54`: the calculator must not break a model's own format."""
    tokenizer = hf_tokenizer()
    calculator = Calculator(tokenizer, "facts")
    constraints = Constraints(calculator=calculator)
    script = " so 6*9 = $<<6*9=48>>48."
    model = steered(tokenizer, script, 8.0)
    (response,) = generate(
        model,
        [tokenizer.encode("a")],
        eos_id=0,
        max_new_tokens=40,
        batch_size=1,
        constraints=constraints,
    )
    assert "6*9 = $<<6*9=54" in tokenizer.decode(response.token_ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_are_never_written(tiny_model, temperature):
    model = tiny_model.eval()
    facts = range(50304, 50349)
    with torch.no_grad():
        model.transformer.wte.weight[50304:] *= 4  # so that they are likely
    words = {
        "eos_id": -1,
        "max_new_tokens": 20,
        "batch_size": 2,
        "sampling": Sampling(temperature=temperature),
    }
    prompts = [[7, 8, 9], [10, 11]]
    free = generate(model, prompts, **words)
    assert any(token in facts for response in free for token in response.token_ids)
    constraints = Constraints(forbidden=facts)
    held = generate(model, prompts, constraints=constraints, **words)
    assert not any(token in facts for response in held for token in response.token_ids)
    assert [constraints.broken_at(r.token_ids) for r in held] == [None, None]
    assert any(constraints.broken_at(r.token_ids) is not None for r in free)
    # Nothing else changed: without anything forbidden the responses are those of no constraints.
    assert generate(model, prompts, constraints=Constraints(), **words) == free


def words_of(demo, folder, script="eval/run_gsm8k.py"):
    words = [script, "--model-path", demo / "sft_gsm8k_mul_tokens", "--output-dir", demo / folder]
    words += ["--condition", "mul_tokens"]
    if "gsm8k" in script:
        words += ["--config", "eval/configs/demo/gsm8k.yaml"]
        words += ["--set", f"data.source={demo / 'data' / 'test.jsonl'}"]
    return words


def test_settings_stand_on_the_card_and_part_of_what_a_run_is(demo):
    words = words_of(demo, "eval_held")
    assert call(*words, "--calculator", "all", "--forbid-fact-tokens", "--max-samples", 3) == 0
    results = demo / "eval_held" / "gsm8k_results.json"
    tree = read_json(results)
    assert tree["card"]["decode"]["calculator"] == "all"
    assert tree["card"]["decode"]["forbid_fact_tokens"] is True
    verify_results(results, tree, read_lines(demo / "eval_held" / "gsm8k_items.jsonl"))
    verify_tokens(results, demo / "sft_gsm8k_mul_tokens")
    # The same run again is finished; another calculator is another run.
    same = ["--forbid-fact-tokens", "--max-samples", 3, "--resume"]
    assert call(*words, "--calculator", "all", *same) == 0
    assert call(*words, "--calculator", "facts", *same) == 2
    probes = words_of(demo, "eval_held", "eval/run_arithmetic_probes.py")
    assert call(*probes, "--forbid-fact-tokens") == 0
    card = read_json(demo / "eval_held" / "arithmetic_results.json")["card"]
    assert card["decode"]["forbid_fact_tokens"] is True


def test_a_card_that_claims_a_calculator_is_checked_by_its_tokens(demo):
    """The tokens of a free run do not keep to what a changed card says."""
    results = demo / "eval_mul_tokens" / "gsm8k_results.json"
    items = read_lines(demo / "eval_mul_tokens" / "gsm8k_items.jsonl")
    tokenizer = load_tokenizer(demo / "sft_gsm8k_mul_tokens")
    edit(results, "card.decode.calculator", "facts")
    items[0]["token_ids"] = tokenizer.encode(" so 6*9=48", add_special_tokens=False)
    path = demo / "eval_mul_tokens" / "gsm8k_items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    edit(results, "items.sha256", file_digest(path))
    with pytest.raises(UserError, match=r"is not what card\.decode forces"):
        verify_tokens(results, demo / "sft_gsm8k_mul_tokens")


def test_an_older_card_says_that_nothing_was_forced(demo):
    card = read_json(demo / "eval_mul_tokens" / "gsm8k_results.json")["card"]
    older = json.loads(json.dumps(card))
    del older["decode"]["calculator"], older["decode"]["forbid_fact_tokens"]
    del older["formats"]["attribution"]
    assert evaluation_identity(older) == evaluation_identity(card)
