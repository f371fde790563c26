"""One SFT stage, from loaded conversations to a finished checkpoint folder."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domain_tokens import checkpoints, corpora, hardware, run_card
from domain_tokens.command_line import add_config_arguments, add_output_arguments
from domain_tokens.config import DataSection, SFTConfig
from domain_tokens.corpora import Conversation, decontaminate, digest, load_problems
from domain_tokens.errors import UserError
from domain_tokens.outputs import Workspace, open_workspace
from domain_tokens.prompts import Example, Renderer

CONDITIONS = ("baseline", "mul_tokens")


@dataclass(frozen=True, slots=True)
class StageData:
    """What a stage trains and validates on; eval_split says where the validation rows are from."""

    train: list[Conversation]
    validation: list[Conversation]
    eval_split: str
    fingerprint: dict[str, str]
    dropped: Counter = field(default_factory=Counter)
    listed_drops: list[dict] = field(default_factory=list)


def add_stage_arguments(parser: argparse.ArgumentParser, default_config: str) -> None:
    """Add the arguments that both training stages take."""
    parser.add_argument("--model-path", required=True, metavar="DIR", help="parent checkpoint")
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument("--seed", type=int, help="overrides training.seed")
    parser.add_argument(
        "--cross-base",
        action="store_true",
        help="accept a parent of the other arm (a base × SFT factorial)",
    )
    add_output_arguments(parser)
    add_config_arguments(parser, default_config)


def overrides_of(args: argparse.Namespace) -> list[str]:
    """Return the --set overrides, with --seed as the last of them."""
    seed = [] if args.seed is None else [f"training.seed={args.seed}"]
    return [*args.overrides, *seed]


def open_stage(
    args: argparse.Namespace, config: SFTConfig, results_name: str
) -> tuple[Workspace, dict[str, Any]]:
    """Check the parent, open the output folder; return it and the parent's identity."""
    parent = checkpoints.check_parent(
        Path(args.model_path), condition=args.condition, cross_base=args.cross_base
    )
    identity = {
        "condition": args.condition,
        "config": config.model_dump(),
        "parent_weights": parent["weights"],
        "formats": run_card.formats(),
    }
    # Other processes may look after the first one has begun to write.
    resume = args.resume or not (hardware.is_main_process() or args.overwrite)
    workspace = open_workspace(
        args.output_dir, results_name, identity, resume=resume, overwrite=args.overwrite
    )
    return workspace, parent


def source_files(data: DataSection) -> dict[str, str]:
    """Return path and SHA-256 of all local files that a stage reads."""
    files = corpora.file_hashes(data.source, split=data.split)
    others = (
        ("data.validation_source", data.validation_source, data.validation_split or "validation"),
        ("data.decontaminate_against", data.decontaminate_against, data.decontaminate_split),
    )
    for key, source, split in others:
        if source is not None:
            files |= corpora.file_hashes(source, split=split, key=key)
    return files


def drop_test_questions(
    rows: list[Conversation], data: DataSection
) -> tuple[list[Conversation], list[dict]]:
    """Return the rows that do not repeat a test question, and a list of those that do.

    Without data.decontaminate_against all rows are kept.
    """
    if data.decontaminate_against is None:
        return rows, []
    test = load_problems(
        data.decontaminate_against,
        split=data.decontaminate_split,
        limit=None,
        subset_seed=data.subset_seed,
        key="data.decontaminate_against",
    )
    return decontaminate(rows, [problem.question for problem in test.items])


def render(
    renderer: Renderer, conversations: Sequence[Conversation], *, max_length: int, name: str
) -> tuple[list[Example], Counter]:
    """Render conversations in order; return the kept examples and the counts of drops by reason."""
    examples: list[Example] = []
    dropped: Counter = Counter()
    for row in tqdm(conversations, desc=f"render {name}", delay=2, disable=None):
        example = renderer.example(row.id, row.messages, max_length=max_length)
        if isinstance(example, str):
            dropped[example] += 1
        else:
            examples.append(example)
    return examples, dropped


def run_stage(
    args: argparse.Namespace,
    config: SFTConfig,
    data: StageData,
    workspace: Workspace,
    *,
    inject: bool,
) -> dict[str, Any]:
    """Render, train, evaluate once after the last step, save; return the results.

    The results JSON is written last of all, so that a folder that has it is finished.
    """
    import torch
    from transformers import set_seed

    from domain_tokens import training

    settings = config.training
    set_seed(settings.seed)
    parent_folder = Path(args.model_path)
    tokenizer = checkpoints.load_tokenizer(parent_folder)
    model = checkpoints.load_model(parent_folder, dtype=torch.float32)
    _refuse_longer_than_context(model, settings.max_length)
    renderer = Renderer(
        tokenizer,
        inject=inject,
        injection_mode=config.data.injection_mode,
        loss_on=settings.loss_on,
    )
    examples, dropped = render(renderer, data.train, max_length=settings.max_length, name="train")
    validation, _ = render(
        renderer, data.validation, max_length=settings.max_length, name="validation"
    )
    if not examples:
        raise UserError(f"no training example is left (dropped: {dict(dropped)}); see data.source")
    plan = training.make_plan(examples, settings, processes=hardware.world_size())
    if hardware.is_main_process():
        workspace.begin()
    print(_announcement(examples, plan, dropped + data.dropped), flush=True)
    device, dtype = hardware.choose(settings.precision)
    peak = hardware.peak_flops(device, dtype)
    outcome = training.train(model, examples, plan, settings, workspace.work)
    scores = training.evaluate(model, validation, settings)
    results = {
        **_results(args, config, data, examples, plan),
        "dropped": dict(dropped + data.dropped),
        "total_val_samples": len(validation),
        "train_loss": outcome.train_loss,
        "train_runtime": outcome.seconds,
        "train_samples_per_second": len(plan.order) / outcome.seconds,
        "tokens_per_second": sum(plan.tokens) / outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        **_utilisation(outcome, peak, hardware.peak_flops(device, dtype)),
        **scores,
    }
    if hardware.is_main_process():
        checkpoints.save(model, tokenizer, workspace.work)
        _finish(args, config, data, workspace, results)
    return results


def _refuse_longer_than_context(model: Any, max_length: int) -> None:
    context = getattr(model.config, "max_position_embeddings", max_length)
    if max_length > context:
        raise UserError(
            f"training.max_length is {max_length}, the model reads {context} tokens; "
            f"--set training.max_length={context}"
        )


def _announcement(examples: list[Example], plan: Any, dropped: Counter) -> str:
    lost = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none"
    facts = sum(e.facts for e in examples)
    return (
        f"{len(examples)} examples ({sum(e.truncated for e in examples)} truncated; "
        f"dropped: {lost}), "
        f"{sum(plan.tokens)} tokens in {len(plan.steps)} optimizer steps, {facts} fact tokens"
    )


def _results(
    args: argparse.Namespace,
    config: SFTConfig,
    data: StageData,
    examples: list[Example],
    plan: Any,
) -> dict[str, Any]:
    touched = sum(e.facts > 0 for e in examples)
    kept = {e.id for e in examples}
    return {
        "condition": args.condition,
        "seed": config.training.seed,
        "dataset": config.data.source,
        "total_train_samples": len(examples),
        "optimizer_steps": len(plan.steps),
        "tokens": sum(plan.tokens),
        "supervised_tokens": sum(plan.supervised),
        "truncated": sum(e.truncated for e in examples),
        "injected_examples": touched,
        "injected_tokens": sum(e.facts for e in examples),
        "injection_rate": touched / len(examples),
        "source_composition": dict(Counter(c.source for c in data.train if c.id in kept)),
        "order_digest": digest(examples[i].id for i in plan.order),
        "eval_split": data.eval_split,
        "config": config.model_dump(),
    }


def _utilisation(
    outcome: Any, before: float | None, after: float | None
) -> dict[str, float | None]:
    # Another load on a shared machine hides the peak for a while: an MFU of 1.7 was once reported.
    peak = max(before, after) if before and after else None
    return {
        "mfu": outcome.flops / outcome.seconds / peak if peak else None,
        "peak_flops_used": peak,
    }


def _finish(
    args: argparse.Namespace,
    config: SFTConfig,
    data: StageData,
    workspace: Workspace,
    results: dict[str, Any],
) -> None:
    work = workspace.work
    device, dtype = hardware.choose(config.training.precision)
    parent = checkpoints.check_parent(
        Path(args.model_path), condition=args.condition, cross_base=args.cross_base
    )
    card = {
        "stage": workspace.results_name.removesuffix("_results.json"),
        "condition": args.condition,
        "seed": config.training.seed,
        "config": config.model_dump(),
        "weights": checkpoints.weights_hash(work),
        "tokenizer": checkpoints.tokenizer_hash(work),
        "parent": parent,
        "base": parent["base"],
        "cross_base": args.cross_base or parent["cross_base"],
        "identity": workspace.identity,
        "formats": run_card.formats(),
        "data": data.fingerprint,
        "sources": source_files(config.data),
        "order_digest": results["order_digest"],
        "code": run_card.code_identity(),
        "environment": run_card.environment(device, str(dtype).removeprefix("torch.")),
    }
    run_card.write_json(work / run_card.CARD_NAME, card)
    if data.listed_drops:
        run_card.write_json(work / "decontaminated.json", {"dropped": data.listed_drops})
    run_card.write_json(work / workspace.results_name, results)
    workspace.complete()
