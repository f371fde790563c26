"""One SFT stage, from the parent checkpoint to a finished checkpoint folder."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import checkpoints, corpora, hardware, run_card
from domain_tokens.command_line import CONDITIONS, add_config_arguments, add_output_arguments
from domain_tokens.corpora import digest, load_problems
from domain_tokens.errors import UserError
from domain_tokens.outputs import Workspace, open_workspace
from domain_tokens.tracking import named, require

if TYPE_CHECKING:
    from domain_tokens.config import DataSection, SFTConfig
    from domain_tokens.preparation import Prepared, StageData
    from domain_tokens.prompts import Renderer


FLAGS = {"seed": "training.seed"}  # arguments that are short for config keys


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
    parser.add_argument(
        "--dry-run", action="store_true", help="show data, steps, estimated time and memory; stop"
    )
    add_output_arguments(parser)
    add_config_arguments(parser, default_config)


def open_stage(
    args: argparse.Namespace, config: "SFTConfig", results_name: str
) -> tuple[Workspace, dict[str, Any]]:
    """Check the parent, open the output folder; return it and the parent's identity."""
    require(config.tracking)
    parent = checkpoints.check_parent(
        Path(args.model_path), condition=args.condition, cross_base=args.cross_base
    )
    identity = {
        "condition": args.condition,
        "config": config.identity(),
        "parent_weights": parent["weights"],
        "formats": run_card.formats(),
    }
    # Other processes may look after the first one has begun to write.
    resume = args.resume or not (hardware.is_main_process() or args.overwrite)
    workspace = open_workspace(
        args.output_dir, results_name, identity, resume=resume, overwrite=args.overwrite
    )
    return workspace, parent


def sources(data: "DataSection") -> list[tuple[str, str, str]]:
    """Return config key, source and split of everything that a stage reads."""
    found = [
        ("data.source", data.source, data.split),
        ("data.validation_source", data.validation_source, data.validation_split or "validation"),
        ("data.decontaminate_against", data.decontaminate_against, data.decontaminate_split),
    ]
    return [(key, source, split) for key, source, split in found if source is not None]


def source_files(data: "DataSection") -> dict[str, str]:
    """Return path and SHA-256 of all local files that a stage reads."""
    files = {}
    for key, source, split in sources(data):
        files |= corpora.file_hashes(source, split=split, key=key)
    return files


def test_questions(data: "DataSection") -> list[str]:
    """Return the questions that no training row may repeat; none where the config says null."""
    if data.decontaminate_against is None:
        return []
    test = load_problems(
        data.decontaminate_against,
        split=data.decontaminate_split,
        limit=None,
        subset_seed=data.subset_seed,
        key="data.decontaminate_against",
    )
    return [problem.question for problem in test.items]


def prepare(
    args: argparse.Namespace,
    config: "SFTConfig",
    load: Callable[["SFTConfig"], "StageData"],
    renderer: "Renderer",
    *,
    inject: bool,
) -> "Prepared":
    """Render what a stage trains on, or find it where an earlier run of the same data kept it."""
    from domain_tokens import preparation

    settings = config.training
    limits = ("max_length", "max_train_samples", "max_val_samples", "loss_on")
    identity = {
        "sources": [corpora.source_identity(s, split=p, key=k) for k, s, p in sources(config.data)],
        "data": config.data.model_dump(),
        "training": {name: getattr(settings, name) for name in limits},
        "tokenizer": checkpoints.tokenizer_hash(Path(args.model_path)),
        "inject": inject,
        "kind": load.__module__,
    }
    found = preparation.prepare(
        lambda: load(config), renderer, max_length=settings.max_length, identity=identity
    )
    if not found.train:
        dropped = found.account.dropped
        raise UserError(f"no training example is left (dropped: {dropped}); see data.source")
    return found


def run_stage(
    args: argparse.Namespace,
    config: "SFTConfig",
    load: Callable[["SFTConfig"], "StageData"],
    workspace: Workspace,
    *,
    inject: bool,
) -> dict[str, Any] | None:
    """Render, train, evaluate once after the last step, save; return the results.

    The results JSON is written last of all, so that a folder that has it is finished. With
    --dry-run nothing is trained or written, and there are no results.
    """
    import torch
    from transformers import set_seed

    from domain_tokens import display, rehearsal, training
    from domain_tokens.prompts import Renderer

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
    data = prepare(args, config, load, renderer, inject=inject)
    plan = training.make_plan(data.train, settings, processes=hardware.world_size())
    print(_announcement(data, plan), flush=True)
    print(display.example(tokenizer, data.train[plan.order[0]]), flush=True)
    if args.dry_run:
        print(rehearsal.estimate(model, data.train, plan, settings))
        return None
    if hardware.is_main_process():
        workspace.begin()
    device, dtype = hardware.choose(settings.precision)
    peak = hardware.peak_flops(device, dtype)
    tracking = named(config.tracking, workspace.final.name)
    outcome = training.train(model, data.train, plan, settings, workspace.work, tracking=tracking)
    scores = training.evaluate(model, data.validation, settings)
    results = {
        **_results(args, config, data, plan),
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


def summary(results: dict[str, Any], folder: str, name: str) -> str:
    """Return what a person wants to know of a finished stage, on one screen."""
    loss, mfu = results["eval_loss"], results["mfu"]
    lines = [
        ("train loss", f"{results['train_loss']:.4f}"),
        (f"{results['eval_split']} loss", "-" if loss is None else f"{loss:.4f}"),
        ("optimizer steps", f"{results['optimizer_steps']:,}"),
        ("tokens", f"{results['tokens']:,} ({results['supervised_tokens']:,} supervised)"),
        (
            "fact tokens",
            f"{results['injected_tokens']:,} in {results['injection_rate']:.1%} of the examples",
        ),
        (
            "speed",
            f"{results['tokens_per_second']:,.0f} tokens/s, {results['train_runtime']:,.0f} s"
            + ("" if mfu is None else f", {mfu:.0%} of the peak rate"),
        ),
        ("peak memory", f"{results['peak_memory_bytes'] / 2**30:.1f} GiB"),
        ("checkpoint", folder),
        ("results", f"{folder}/{name}"),
    ]
    return "\n".join(f"  {key:<16} {value}" for key, value in lines)


def _refuse_longer_than_context(model: Any, max_length: int) -> None:
    context = getattr(model.config, "max_position_embeddings", max_length)
    if max_length > context:
        raise UserError(
            f"training.max_length is {max_length}, the model reads {context} tokens; "
            f"--set training.max_length={context}"
        )


def _announcement(data: "Prepared", plan: Any) -> str:
    dropped = sorted(data.account.dropped.items())
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped) or "none"
    return (
        f"{len(data.train)} examples ({sum(e.truncated for e in data.train)} truncated; "
        f"dropped: {lost}), {sum(plan.tokens):,} tokens in {len(plan.steps):,} optimizer steps, "
        f"{sum(plan.supervised):,} supervised, {sum(e.facts for e in data.train):,} fact tokens"
    )


def _results(
    args: argparse.Namespace, config: "SFTConfig", data: "Prepared", plan: Any
) -> dict[str, Any]:
    examples, account = data.train, data.account
    touched = sum(e.facts > 0 for e in examples)
    return {
        "condition": args.condition,
        "seed": config.training.seed,
        "dataset": config.data.source,
        "total_train_samples": len(examples),
        "total_val_samples": len(data.validation),
        "optimizer_steps": len(plan.steps),
        "tokens": sum(plan.tokens),
        "supervised_tokens": sum(plan.supervised),
        "dropped": account.dropped,
        "truncated": sum(e.truncated for e in examples),
        "injected_examples": touched,
        "injected_tokens": sum(e.facts for e in examples),
        "injection_rate": touched / len(examples),
        "source_composition": account.source_composition,
        "order_digest": digest(examples[i].id for i in plan.order),
        "eval_split": account.eval_split,
        "config": config.identity(),
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
    config: "SFTConfig",
    data: "Prepared",
    workspace: Workspace,
    results: dict[str, Any],
) -> None:
    work = workspace.work
    device, dtype = hardware.choose(config.training.precision)
    parent = checkpoints.check_parent(
        Path(args.model_path), condition=args.condition, cross_base=args.cross_base
    )
    if data.account.listed_drops:
        listed = {"dropped": data.account.listed_drops}
        run_card.write_json(work / "decontaminated.json", run_card.sealed(listed))
    card = {
        "stage": workspace.results_name.removesuffix("_results.json"),
        "command": args.command,
        "condition": args.condition,
        "seed": config.training.seed,
        "config": config.identity(),
        **checkpoints.description(work),
        "results": {key: value for key, value in results.items() if key != "config"},
        "parent": parent,
        "base": parent["base"],
        "cross_base": args.cross_base or parent["cross_base"],
        "identity": workspace.identity,
        "formats": run_card.formats(),
        "data": data.account.fingerprint,
        "sources": source_files(config.data),
        "order_digest": results["order_digest"],
        "code": run_card.code_identity(),
        "environment": run_card.environment(device, str(dtype).removeprefix("torch.")),
    }
    run_card.write_json(work / run_card.CARD_NAME, run_card.sealed(card))
    run_card.write_json(work / workspace.results_name, run_card.sealed(results))
    workspace.complete()
