"""Whether a finished evaluation follows from its own files, its tokenizer and its data.

Every error names the file and the key. What a writer of results computes is computed here again by
the same functions (`metrics`), so that a change or a mixture of runs is seen; whether these
functions are right is for the tests' own oracle to say.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints import load_tokenizer, read_card
from domain_tokens.data import file_hashes, load_problems
from domain_tokens.errors import UserError
from domain_tokens.evaluation.arithmetic import probes_fingerprint
from domain_tokens.evaluation.attribution import ATTRIBUTION_VERSION
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint, treatment_in
from domain_tokens.evaluation.endpoints import cut_before_answer
from domain_tokens.evaluation.fact_tokens import (
    facts_in_solution,
    facts_with_product,
    names_of,
    reserved_counts,
    rows_of,
)
from domain_tokens.evaluation.gsm8k import gsm8k_questions
from domain_tokens.evaluation.metrics import (
    DISTRACTORS,
    SHOWN,
    arithmetic_metrics,
    decoding_speed,
    derived_keys,
    gsm8k_metrics,
    story_metrics,
)
from domain_tokens.evaluation.probes import TABLE, TEMPLATES, probes
from domain_tokens.evaluation.responses import (
    LINES,
    Question,
    constraints_of,
    item_of,
    lines_file,
)
from domain_tokens.evaluation.stories import STORIES
from domain_tokens.inference import Constraints, Response
from domain_tokens.prompts import Renderer
from domain_tokens.runs import (
    EVALUATION_LINES,
    EVALUATION_RESULTS,
    SEAL,
    ProbeSection,
    as_written_today,
    check_records,
    check_seal,
    file_digest,
    format_versions,
    hash_json,
    lacked_keys,
    read_lines,
    read_sealed,
)
from domain_tokens.vocabulary import layout_of

Item = dict[str, Any]

PROBES = ("arithmetic", "stories")
# Of these a recomputed value may differ by more than rounding: NumPy may change its permutations.
TOLERANCE = {"matched_floor_p": 0.06}  # five standard errors of 2,000 permutations at one half


class OlderError(Exception):
    """Says in one line why a finished folder of an older version can be checked less."""


def bound_lines(results: Path, tree: dict[str, Any], kind: str) -> list[Item]:
    """Return the lines of a file that the results name; UserError where it is another file."""
    name = results.name.removesuffix("_results.json")
    bound, path = tree[kind], lines_file(results.parent, name, kind)
    lines = read_lines(path)
    actual = {"file": path.name, "sha256": file_digest(path), "count": len(lines)}
    _refuse_difference(actual, bound, f"{results}: {kind}", f"{path.name} has")
    return lines


def verify_results(results: Path, tree: dict[str, Any], items: Sequence[Item]) -> list[str]:
    """Recompute all that an evaluation says from its lines, at load: no tokenizer, no data.

    Returns notices of keys that this code does not know in other lines than the items. Raises
    UserError at the first key that does not follow, OlderError for results of a version that did
    not bind them.
    """
    name = results.name.removesuffix("_results.json")
    if "items" not in tree:
        if SEAL in tree:
            raise UserError(f"{results} has no items; evaluate that checkpoint again")
        raise OlderError(
            f"{results} was written by a version that bound only accuracies to its items; "
            "nothing else in it could be checked"
        )
    card, claimed = _by_todays_names(tree["card"]), dict(tree["metrics"])
    others = {
        kind: bound_lines(results, tree, kind)
        for kind in LINES[name]
        if kind == "scores" or (kind == "rationales" and card["decode"]["num_rationales"])
    }
    bound_lines(results, tree, "items")
    notices = [
        check_records(lines_file(results.parent, name, kind), EVALUATION_LINES[name][kind], lines)
        for kind, lines in others.items()
    ]
    _verify_card(results, tree)
    _verify_items(results, name, items, card)
    if name == "gsm8k":
        _verify_rationales(results, items, others.get("rationales"), card["decode"])
        again = gsm8k_metrics(items, card["decode"])
        shown = list(items[: len(tree["examples"])])
        if tree["examples"] != shown or len(shown) != min(len(items), SHOWN):
            raise UserError(f"{results}: examples are not the first items; evaluate again")
    else:
        stories = name == "stories"
        _verify_scores(results, name, others["scores"], STORIES if stories else TEMPLATES)
        again = (story_metrics if stories else arithmetic_metrics)(items, others["scores"])
    # Without seconds, the two speeds still have to be of one time.
    known = "seconds" in claimed
    seconds = claimed["seconds"] if known else len(items) / claimed["samples_per_second"]
    again |= decoding_speed(items, seconds)
    again |= {"condition": card["condition"], "model_path": claimed["model_path"]}
    lacked = {k.removeprefix("metrics.") for k in lacked_keys(EVALUATION_RESULTS[name], [tree])}
    _refuse_difference(again, claimed, f"{results}: metrics", "its items say", lacked=lacked)
    return notices


def _by_todays_names(card: dict[str, Any]) -> dict[str, Any]:
    return {**card, "decode": as_written_today(card["decode"])}


def _verify_card(results: Path, tree: dict[str, Any]) -> None:
    """Check what the card says twice."""
    card = tree["card"]
    training = card["training"]
    pairs: list[tuple[str, Any, Any]] = [
        ("model_path", Path(tree["metrics"]["model_path"]), Path(card["model_path"]))
    ]
    pairs += [("parent.path", card["parent"]["path"], card["model_path"])]
    pairs += [("stage", card["stage"], results.name.removesuffix("_results.json"))]
    reading = card.get("reading")
    if reading is not None:
        pairs += [("data.source", card["data"]["source"], reading["source"])]
    elif "reading" in card and "sources" in card:
        pairs += [("sources", card["sources"], {})]
    if training:
        check_seal(results.parent / f"{results.name} (card.training)", training)
        names = ("seed", "condition", "weights", "tokenizer", "model")
        pairs += [(name, card[name], training[name]) for name in names if name in training]
    for name, a, b in pairs:
        if a != b:
            raise UserError(f"{results}: card.{name} is {a} in one place and {b} in another")


def _verify_items(results: Path, name: str, items: Sequence[Item], card: dict[str, Any]) -> None:
    """Check each item against itself, and the probes against the settings that drew them."""
    path = lines_file(results.parent, name, "items")
    if name in PROBES:
        if (card["decode"].get("suite") == "stories") != (name == "stories"):
            raise UserError(f"{path}: card.decode.suite is not that of {name}; evaluate again")
        _verify_probes(path, items, card)
    longest = card["decode"]["max_new_tokens"]
    lacked = lacked_keys(EVALUATION_LINES[name]["items"], items)
    same = all(card["formats"][k] == format_versions()[k] for k in ("answers", "injector"))
    for item in items:
        where = f"{path}: {item['id']}"
        if name == "gsm8k" and "g1_log_probs" in item:
            counts = len(item["g1_log_probs"]), len(item["g2_log_probs"])
            if counts != (card["decode"]["num_rationales"], DISTRACTORS + 1):
                raise UserError(f"{where} has {counts} log-probabilities of g1 and g2")
        # Other rules of reading give other verdicts: then the lineage check says so.
        if same:
            again = derived_keys(name, item)
            if card["formats"].get("attribution") != ATTRIBUTION_VERSION:
                again.pop("first_wrong", None)
            _refuse_other_keys(again, item, where, "it follows that it is", lacked=lacked)
        count = len(item["token_ids"])
        if (item["stop_reason"] == "length") != (count == longest) or count > longest:
            raise UserError(
                f"{where}: stop_reason is {item['stop_reason']} after {count} of {longest} tokens"
            )
        if item["mul_tokens"] and card["decode"].get("forbid_fact_tokens"):
            raise UserError(f"{where}: mul_tokens is {item['mul_tokens']}; card.decode forbids any")
        if item["mul_tokens"] != len(item["fact_spans"]):
            raise UserError(f"{where}: mul_tokens is {item['mul_tokens']}, fact_spans differ")


def _verify_probes(path: Path, items: Sequence[Item], card: dict[str, Any]) -> None:
    settings = {k: v for k, v in card["decode"].items() if k in ProbeSection.model_fields}
    chosen = list(probes(ProbeSection.model_validate(settings)))
    if probes_fingerprint(chosen) != card["data"]["probes"]:
        raise UserError(f"{path}: card.data.probes is not the hash of the probes of card.decode")
    asked = [(item["category"], item["prompt"], item["gold"]) for item in items]
    for (category, question, gold), item in zip(chosen, asked, strict=False):
        if item != (category, question, str(gold)):
            raise UserError(f"{path}: {item} stands where {category}: {question} {gold} was asked")
    if len(asked) != len(chosen):
        raise UserError(f"{path} has {len(asked)} items; {len(chosen)} probes were asked")


def _verify_scores(
    results: Path, name: str, lines: Sequence[Item], templates: Sequence[str]
) -> None:
    """Check the lines of A1 or A2: every cell in every wording, each value from its two logs."""
    path = lines_file(results.parent, name, "scores")
    cells = [(a, b, template) for a, b in TABLE for template in templates]
    if [(line["a"], line["b"], line["template"]) for line in lines] != cells:
        raise UserError(f"{path} does not hold the {len(cells)} cells and wordings in their order")
    for line in lines:
        for kind in ("", "both_") if "both_value" in line else ("",):
            value, log_prob, log_sum = (
                line[kind + key] for key in ("value", "log_prob", "log_sum")
            )
            if not math.isclose(value, log_prob - log_sum, abs_tol=1e-9):
                cell = f"{kind}value of {line['a']}×{line['b']}"
                raise UserError(f"{path}: {cell} is not {kind}log_prob - {kind}log_sum")
        if "both_value" in line and not (
            line["both_log_prob"] >= line["log_prob"] and line["both_log_sum"] >= line["log_sum"]
        ):
            raise UserError(f"{path}: both routes of {line['a']}×{line['b']} hold less than one")


def _verify_rationales(
    results: Path, items: Sequence[Item], lines: Sequence[Item] | None, decode: dict[str, Any]
) -> None:
    if lines is None:
        return
    path = lines_file(results.parent, "gsm8k", "rationales")
    longest = decode["max_new_tokens"]
    if [line["id"] for line in lines] != [item["id"] for item in items]:
        raise UserError(f"{path} is not of the same items, in their order; evaluate again")
    for item, line in zip(items, lines, strict=True):
        if hash_json(line["token_ids"]) != item["rationales_sha256"]:
            raise UserError(f"{path}: the rationales of {item['id']} are not those of its item")
        stops, counts = line["stop_reasons"], [len(ids) for ids in line["token_ids"]]
        if {len(stops), len(counts)} != {decode["num_rationales"]}:
            raise UserError(f"{path}: {line['id']} has not {decode['num_rationales']} rationales")
        for stop, count in zip(stops, counts, strict=True):
            known = stop in ("eos", "length", "context")
            if not known or (stop == "length") != (count == longest) or count > longest:
                raise UserError(f"{path}: {line['id']} stops by {stop} after {count} tokens")


def subject_of(folder: Path) -> LoadedCheckpoint:
    """Load what decodes a checkpoint's tokens, without its model."""
    tokenizer = load_tokenizer(folder)
    layout = layout_of(tokenizer)
    treatment = treatment_in(folder, read_card(folder))
    return LoadedCheckpoint(folder, None, tokenizer, layout, treatment=treatment)


def verify_tokens(results: Path, folder: Path) -> str:
    """Recompute from token ids, with the checkpoint's tokenizer and our renderer, what follows.

    That is each item's response, fact spans, counts of reserved tokens and prompt hash, that what
    its decoding forced or forbade is so, and for GSM8K the forced cuts of its rationales. Raises
    UserError at the first that differs.
    """
    tree = read_sealed(results)
    if "items" not in tree:
        return "not checked: written by a version that kept too little"
    subject, card = subject_of(folder), _by_todays_names(tree["card"])
    renderer, start = Renderer(subject.tokenizer), card["decode"].get("response_prefix", "")
    items = bound_lines(results, tree, "items")
    constraints = constraints_of(subject, card["decode"])
    lacked = lacked_keys(EVALUATION_LINES[card["stage"]]["items"], items)
    for item in items:
        _verify_constraints(results, constraints, item["id"], item["token_ids"])
        prompt = renderer.prompt([("user", item["prompt"])], response_prefix=start)
        question = Question(item["id"], item["category"], item["prompt"], prompt, item["gold"])
        response = Response(item["token_ids"], item["stop_reason"])
        again = item_of(subject, question, response, right=())
        if card["stage"] in PROBES:
            right = facts_with_product(subject, int(item["gold"]))
            again |= reserved_counts(subject, item["token_ids"], right)
        else:
            del again["mul_tokens_correct"]  # the data say what is right
        where = f"{results}: {item['id']}"
        _refuse_other_keys(again, item, where, "its tokens say", lacked=lacked)
    if "rationales" in tree:
        for item, line in zip(items, bound_lines(results, tree, "rationales"), strict=True):
            pairs = list(zip(line["token_ids"], line["stop_reasons"], strict=True))
            for ids, _ in pairs:
                _verify_constraints(results, constraints, item["id"], ids)
            cuts = [
                cut_before_answer(subject.tokenizer, Response(ids, stop))[1] for ids, stop in pairs
            ]
            where, again = f"{results}: {item['id']}", {"forced_cuts": sum(cuts)}
            _refuse_other_keys(again, item, where, "its rationales say", lacked=lacked)
    return f"{len(items)} responses from their tokens"


def _verify_constraints(
    results: Path, constraints: Constraints | None, id: str, token_ids: Sequence[int]
) -> None:
    at = constraints.broken_at(token_ids) if constraints else None
    if at is not None:
        raise UserError(
            f"{results}: token {at} of {id} is not what card.decode forces or permits there; "
            "evaluate again"
        )


def verify_data(results: Path, folder: Path) -> str:
    """Check questions, golds and what depends on gold solutions against the data file.

    Raises UserError at the first item that is not that of the data.
    """
    tree = read_sealed(results)
    card = tree["card"]
    reading = card.get("reading")
    if reading is None:
        return "the probes of its settings" if card["stage"] in PROBES else "not recorded"
    if not Path(reading["source"]).exists():
        return f"{reading['source']} (not here)"
    loaded = load_problems(**reading)
    if "sources" in card:
        again = file_hashes(reading["source"], split=reading["split"])
        _refuse_difference(again, card["sources"], f"{results}: card.sources", "the data say")
    if loaded.fingerprint != card["data"]["test"]:
        raise UserError(f"{results}: {reading['source']} does not hold the rows of card.data.test")
    subject, items = subject_of(folder), bound_lines(results, tree, "items")
    questions = gsm8k_questions(subject, loaded.items)
    if len(items) != len(questions):
        raise UserError(f"{results} has {len(items)} items, the data {len(questions)}")
    lacked = lacked_keys(EVALUATION_LINES["gsm8k"]["items"], items)
    for item, problem, question in zip(items, loaded.items, questions, strict=True):
        facts = facts_in_solution(subject, problem)
        belong = rows_of(subject, facts)
        again = {
            "id": question.id,
            "category": question.category,
            "prompt": question.prompt,
            "prompt_hash": question.prompt_hash,
            "gold": question.gold,
            "applicable": bool(facts),
            "mul_tokens_correct": sum(i in belong for i in item["token_ids"]),
            "gold_facts": names_of(subject, facts),
        }
        where = f"{results}: {question.id}"
        _refuse_other_keys(again, item, where, "the data say", lacked=lacked)
    return f"{len(items)} questions and golds"


def _refuse_other_keys(
    again: Item, item: Item, where: str, says: str, *, lacked: Collection[str]
) -> None:
    """Hold an item against some of its keys that were computed again."""
    _refuse_difference(again, {k: item[k] for k in again if k in item}, where, says, lacked=lacked)


def _refuse_difference(
    actual: Any, claimed: Any, where: str, says: str, *, lacked: Collection[str] = ()
) -> None:
    """Raise UserError at the first key that differs; lacked: those of which nothing is claimed."""
    for key, value, claim in _differing(actual, claimed, ""):
        if key not in lacked:
            raise UserError(
                f"{where}: {key} is {_short(claim)}, {says} {_short(value)}; they are not of one "
                "run: evaluate again"
            )


def _differing(actual: Any, claimed: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(actual, dict) and isinstance(claimed, dict):
        for name in {**actual, **claimed}:
            path = f"{key}.{name}" if key else str(name)
            if name not in actual or name not in claimed:
                yield path, actual.get(name), claimed.get(name)
            else:
                yield from _differing(actual[name], claimed[name], path)
    elif isinstance(actual, list) and isinstance(claimed, list):
        if len(actual) != len(claimed):
            yield key, actual, claimed
        for number, (a, b) in enumerate(zip(actual, claimed, strict=False)):
            yield from _differing(a, b, f"{key}.{number}")
    elif not _same(actual, claimed, TOLERANCE.get(key, 1e-9)):
        yield key, actual, claimed


def _same(actual: Any, claimed: Any, tolerance: float) -> bool:
    if isinstance(actual, float) and type(claimed) in (int, float):
        return math.isclose(actual, claimed, rel_tol=1e-9, abs_tol=tolerance)
    return type(actual) is type(claimed) and actual == claimed


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
