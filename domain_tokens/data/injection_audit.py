"""What injection touches in a data set, counted and shown: `scripts/audit_injection.py`."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from domain_tokens.data.examples import Conversation
from domain_tokens.injection import find_facts, near_misses
from domain_tokens.merges import choose_merges
from domain_tokens.treatments import NAMES, Name, Treatment
from domain_tokens.vocabulary import FACTS

if TYPE_CHECKING:
    from domain_tokens.prompts import Renderer

CONTEXT = 30  # characters shown on both sides
SAMPLES = 5  # of each kind
WHOLE = 2**31 - 1  # tokens: no row is cut


def audit(
    rows: Sequence[Conversation], renderer: "Renderer", mode: Any
) -> tuple[dict[str, Any], list[Conversation]]:
    """Count rows, tokens and facts that injection touches in assistant turns; sample matches.

    Returns the counts, and the rows that hold a fact.
    """
    tokens = injected = 0
    touched: list[Conversation] = []
    facts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    samples: dict[str, list[str]] = defaultdict(list)
    for row in tqdm(rows, desc="audit", delay=2, disable=None):
        matches_of_row = 0
        for text in (content for role, content in row.messages if role == "assistant"):
            tokens += len(renderer.encode(text))
            matches = find_facts(text, mode=mode)
            matches_of_row += len(matches)
            facts.update(match.token for match in matches)
            named = [(p.start, p.end, f"match: {p.form}") for p in matches]
            misses = [(*m[:2], f"near miss: {m[2]}") for m in near_misses(text, mode=mode)]
            for start, end, kind in named + misses:
                kinds[kind] += 1
                if len(samples[kind]) < SAMPLES:
                    samples[kind].append(shown(text, start, end))
        if matches_of_row:
            touched.append(row)
        injected += matches_of_row
    report = {
        "rows": len(rows),
        "rows_touched": len(touched),
        "row_share": len(touched) / len(rows),
        "assistant_tokens": tokens,
        "facts_injected": injected,
        "facts_per_1000_tokens": 1000 * injected / max(tokens, 1),
        "different_facts": len(facts),
        "facts": {fact: facts[fact] for fact in FACTS},
        "kinds": dict(kinds.most_common()),
        "samples": dict(samples),
    }
    return report, touched


def count_tokens(
    rows: Sequence[Conversation], tokenizer: Any, names: Sequence[Name], mode: Any
) -> dict[str, dict[str, Any]]:
    """Return what an epoch of all rows has to read and to learn under each treatment, per arm.

    tokens, supervised_tokens: of all rows together; supervised_tokens_per_row: their mean; places:
    what was treated; rows_longer, rows_shorter: rows of more, or fewer, tokens than the baseline's.
    """
    from domain_tokens.prompts import Renderer

    plain = Renderer(tokenizer)
    texts = [f" {text}" for row in rows for role, text in row.messages if role == "assistant"]
    counts: dict[str, dict[str, Any]] = {}
    lengths: dict[str, list[int]] = {}
    for name in ("baseline", *names):
        treatment = Treatment(name) if name in NAMES else None
        if name == "matched_merges":
            merges = choose_merges(texts, FACTS, length=lambda t: len(plain.encode(t)), mode=mode)
            treatment = Treatment(name, merges=merges)
        renderer = Renderer(tokenizer, treatment=treatment, injection_mode=mode)
        made = [renderer.example(row.id, row.messages, max_length=WHOLE) for row in rows]
        examples = [example for example in made if not isinstance(example, str)]
        lengths[name] = [len(example.input_ids) for example in examples]
        longer = [a - b for a, b in zip(lengths[name], lengths["baseline"], strict=True)]
        supervised = sum(example.supervised for example in examples)
        counts[name] = {
            "rows": len(examples),
            "tokens": sum(lengths[name]),
            "supervised_tokens": supervised,
            "supervised_tokens_per_row": supervised / max(len(examples), 1),
            "places": sum(example.facts for example in examples),
            "rows_longer": sum(change > 0 for change in longer),
            "rows_shorter": sum(change < 0 for change in longer),
        }
    return counts


def shown(text: str, start: int, end: int) -> str:
    """Return a span in brackets, with its surroundings in one line."""
    before, after = text[max(0, start - CONTEXT) : start], text[end : end + CONTEXT]
    return " ".join(f"{before}⟦{text[start:end]}⟧{after}".split())
