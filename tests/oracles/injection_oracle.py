"""Judge every fact that the injector takes, and count the ones that it could have taken."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from domain_tokens.injection import find_facts
from tests.oracles.arithmetic import keeps_value
from tests.oracles.injected_texts import candidates, code


@dataclass
class Verdict:
    """judged: facts that the oracle can read; harmless: candidates that keep the value, of which
    the injector took `taken`; changed: texts and matches where a value changes or code is touched.
    """

    texts: int = 0
    facts: int = 0
    judged: int = 0
    harmless: int = 0
    taken: int = 0
    changed: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.texts} texts, {self.facts} facts, {self.judged} judged, "
            f"{len(self.changed)} change a value; of {self.harmless} matches that keep it "
            f"{self.taken} = {self.taken / max(self.harmless, 1):.1%} are taken"
        )


def judge(texts: Iterable[str], find=find_facts) -> Verdict:
    """Compare values before and after each substitution, one at a time."""
    verdict = Verdict()
    for text in texts:
        verdict.texts += 1
        facts = find(text)
        for fact in facts:
            verdict.facts += 1
            kept = keeps_value(text, fact.start, fact.end, fact.product)
            in_code = any(fact.start < end and fact.end > start for start, end in code(text))
            verdict.judged += kept is not None
            if kept is False or in_code:
                verdict.changed.append((text, text[fact.start : fact.end]))
        begins = {fact.start for fact in facts}
        harmless = {s for s, e, product in candidates(text) if keeps_value(text, s, e, product)}
        verdict.harmless += len(harmless)
        verdict.taken += len(harmless & begins)
    return verdict
