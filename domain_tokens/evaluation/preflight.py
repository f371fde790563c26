"""Whether a checkpoint can answer all questions, before the first one is decoded."""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from domain_tokens.evaluation.checkpoint import LoadedCheckpoint
    from domain_tokens.evaluation.responses import Question

SHOWN = 3  # questions that are named


def refuse_long_questions(
    subject: "LoadedCheckpoint",
    questions: Sequence["Question"],
    max_new_tokens: int,
    *,
    answers: Collection[str] = (),
) -> None:
    """Raise UserError where a question and what follows it are more than the model reads.

    A response may take all of max_new_tokens. answers: what is scored after a response and
    `####` on a line of its own; none where nothing is.
    """
    from domain_tokens.evaluation.endpoints import MARKER
    from domain_tokens.prompts import Renderer

    context = getattr(subject.model.config, "max_position_embeddings", None)
    if context is None:
        return
    renderer = Renderer(subject.tokenizer)
    tail = 0
    if answers:
        marker = max(len(renderer.encode(text)) for text in (f"\n{MARKER}", f" {MARKER}", MARKER))
        tail = marker + max(len(renderer.encode(f" {answer}")) for answer in answers)
    long = [q for q in questions if len(q.prompt_ids) + max_new_tokens + tail > context]
    if not long:
        return
    longest = max(long, key=lambda question: len(question.prompt_ids))
    size = len(longest.prompt_ids)
    left = context - tail - size
    named = ", ".join(question.id for question in long[:SHOWN]) + ", …" * (len(long) > SHOWN)
    fix = (
        f"--set evaluation.max_new_tokens={left}"
        if left > 0
        else f"leave {longest.id} out of the data"
    )
    raise UserError(
        f"{len(long)} of {len(questions)} questions do not fit ({named}): {longest.id} has {size} "
        f"tokens, its response up to {max_new_tokens}, the answer scored after it {tail}, and "
        f"the model reads {context}; {fix}"
    )


def refuse_broken_weights(subject: "LoadedCheckpoint", questions: Sequence["Question"]) -> None:
    """Raise UserError where a checkpoint gives NaN: no metric of it could be written."""
    from domain_tokens.inference import continuation_log_probs

    if not questions:
        return
    end = [[subject.tokenizer.eos_token_id]]
    ((value,),) = continuation_log_probs(subject.model, [questions[0].prompt_ids], [end])
    if not math.isfinite(value):
        raise UserError(
            f"{subject.folder}: the log-probability of a token is {value}; the weights are broken "
            "(scripts/check_checkpoint.py names where)"
        )
