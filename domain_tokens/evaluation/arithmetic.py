"""The arithmetic probes as questions."""

from collections.abc import Sequence
from typing import Any

from domain_tokens.evaluation.checkpoint import LoadedCheckpoint
from domain_tokens.evaluation.responses import Question
from domain_tokens.prompts import Renderer
from domain_tokens.runs import hash_json


def probes_fingerprint(rows: Sequence[Any]) -> str:
    """Return a hash of generated questions and their answers."""
    return hash_json([list(row) for row in rows])


def probe_questions(
    subject: LoadedCheckpoint, probes: Sequence[tuple[str, str, int]], *, response_prefix: str
) -> list[Question]:
    """Render probes; the response is made to begin with response_prefix in both arms alike."""
    renderer = Renderer(subject.tokenizer)
    return [
        Question(
            id=f"{category}:{question}",
            category=category,
            prompt=question,
            prompt_ids=renderer.prompt([("user", question)], response_prefix=response_prefix),
            gold=str(gold),
        )
        for category, question, gold in probes
    ]
