"""GSM8K questions, their sampled rationales and endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from domain_tokens.answers import Gold, gold
from domain_tokens.data import Problem
from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint, resolved_rationale_seed
from domain_tokens.evaluation.endpoints import answer_scores
from domain_tokens.evaluation.responses import Answers, Question, answer_questions
from domain_tokens.prompts import Renderer
from domain_tokens.runs import GSM8KSection, hash_json


def gsm8k_questions(subject: LoadedCheckpoint, problems: Sequence[Problem]) -> list[Question]:
    """Render GSM8K test questions with the training renderer.

    Raises UserError that names an item whose answer cannot be read.
    """
    renderer = Renderer(subject.tokenizer)
    return [
        Question(
            id=problem.id,
            category="gsm8k",
            prompt=problem.question,
            prompt_ids=renderer.prompt([("user", problem.question)]),
            gold=str(gold.number),
        )
        for problem, gold in zip(problems, read_golds(problems), strict=True)
    ]


def rationale_questions(questions: Sequence[Question], count: int) -> list[Question]:
    """Return every question `count` times, numbered, for the arm's own rationales."""
    return [replace(q, id=f"{q.id}#{k}") for q in questions for k in range(count)]


def answer_endpoints(
    subject: LoadedCheckpoint,
    questions: Sequence[Question],
    output: Answers,
    *,
    golds: Sequence[str],
    settings: GSM8KSection,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the endpoints G1 and G2 per item, and the rationales; nothing without rationales.

    golds: the answers as the data write them. The rationales are kept (about 10 MB for all of
    GSM8K, a fiftieth of a checkpoint): sampling is not repeatable on other hardware, while G1 after
    given rationales is.
    """
    count = settings.num_rationales
    if count == 0:
        return [{} for _ in questions], []
    drawn = answer_questions(
        subject,
        rationale_questions(questions, count),
        output,
        settings,
        sampling_seed=resolved_rationale_seed(settings, subject),
    )
    groups = [drawn[i : i + count] for i in range(0, len(drawn), count)]
    scores = answer_scores(
        subject,
        [question.prompt_ids for question in questions],
        golds,
        groups,
        settings.frequent_answers,
    )
    lines = [
        {
            "id": question.id,
            "token_ids": [response.token_ids for response in group],
            "stop_reasons": [response.stop_reason for response in group],
        }
        for question, group in zip(questions, groups, strict=True)
    ]
    bound = [{"rationales_sha256": hash_json(line["token_ids"])} for line in lines]
    return [asdict(score) | of for score, of in zip(scores, bound, strict=True)], lines


def read_golds(problems: Sequence[Problem]) -> list[Gold]:
    """Return the answers of all problems; raises UserError that names the first bad one."""
    golds = []
    for problem in problems:
        try:
            golds.append(gold(problem.answer))
        except ValueError as error:
            question = " ".join(problem.question.split())
            raise UserError(f"item {problem.id} ({question[:60]!r}): {error}") from None
    return golds
