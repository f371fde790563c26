"""One SFT stage, from the parent checkpoint to a finished checkpoint folder."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.checkpoints import (
    check_parent,
    hashes_and_files,
    load_model,
    load_tokenizer,
    save_checkpoint,
)
from domain_tokens.data import digest_of_ids
from domain_tokens.errors import UserError
from domain_tokens.runs import (
    CARD_NAME,
    CONDITIONS,
    PACKAGE,
    SEED,
    Workspace,
    add_config_arguments,
    add_output_arguments,
    choose_device,
    code_hash,
    code_identity,
    format_versions,
    hardware_line,
    is_main_process,
    open_workspace,
    peak_flops,
    read_json,
    run_environment,
    sealed,
    write_json,
)
from domain_tokens.training.stage_data import _validation_drops, prepare_stage, source_files
from domain_tokens.training.tracking import require_trackers, with_run_name

if TYPE_CHECKING:
    from domain_tokens.data import Prepared, StageData, UsualValidation
    from domain_tokens.prompts import Renderer
    from domain_tokens.runs import SFTConfig

STAGE_FLAGS = {"seed": "training.seed"}  # arguments that are short for config keys


def add_stage_arguments(
    parser: argparse.ArgumentParser, default_config: str, *, usual: "UsualValidation"
) -> None:
    """Add the arguments that both training stages take.

    usual: what the stage validates on where the config names nothing.
    """
    parser.set_defaults(usual_validation=usual)
    parser.add_argument("--model-path", required=True, metavar="DIR", help="parent checkpoint")
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument("--seed", type=SEED, help="overrides training.seed")
    parser.add_argument(
        "--cross-base",
        action="store_true",
        help="accept a parent of the other arm (a base × SFT factorial)",
    )
    parser.add_argument(
        "--allow-no-injection",
        action="store_true",
        help="condition mul_tokens without a fact token in its training text, where that is meant",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show data, steps, estimated time and memory; stop"
    )
    add_output_arguments(parser)
    add_config_arguments(parser, default_config)


@dataclass(frozen=True, slots=True)
class OpenStage:
    """One stage that was found fit to begin: what it was told, its parent, its output folder.

    inject: whether products in assistant turns become fact tokens. parent: what identifies the
    parent, ancestors: how it and those before it were trained, both as verified before training.
    """

    args: argparse.Namespace
    config: "SFTConfig"
    load: Callable[["SFTConfig"], "StageData"]
    inject: bool
    workspace: Workspace
    parent: dict[str, Any]
    ancestors: list[dict[str, Any]]


def open_stage(
    args: argparse.Namespace,
    config: "SFTConfig",
    load: Callable[["SFTConfig"], "StageData"],
    results_name: str,
    *,
    inject: bool,
) -> OpenStage:
    """Check the parent, open the output folder; raises UserError where a run may not begin."""
    require_trackers(config.tracking)
    parent = check_parent(
        Path(args.model_path), condition=args.condition, cross_base=args.cross_base
    )
    ancestors = parent.pop("ancestors")
    if args.condition == "mul_tokens" and not inject and not args.allow_no_injection:
        raise UserError(
            "--condition mul_tokens would be trained without fact tokens; add --inject-mul-tokens, "
            "or --allow-no-injection if that is meant"
        )
    identity = {
        "condition": args.condition,
        "config": config.identity(),
        "parent_weights": parent["weights"],
        "formats": format_versions(),
        "inject": inject,
        "code": _deciding_code(load),
    }
    # Other processes may look after the first one has begun to write.
    resume = args.resume or not (is_main_process() or args.overwrite)
    workspace = open_workspace(
        args.output_dir, results_name, identity, resume=resume, overwrite=args.overwrite
    )
    if workspace.finished:
        _refuse_other_injection(workspace, inject=inject)
    return OpenStage(args, config, load, inject, workspace, parent, ancestors)


def _deciding_code(load: Callable) -> str:
    """Return the hash of the code that decides data and training of a stage."""
    modules = [PACKAGE / "training" / "trainer.py", PACKAGE / "data" / "prepared.py"]
    folder = PACKAGE / "checkpoints" / "folder.py"
    alone = [Path(__file__), folder, Path(inspect.getfile(load))]
    return code_hash(modules, alone=alone)


def _refuse_other_injection(workspace: Workspace, *, inject: bool) -> None:
    """Refuse a finished folder from before `inject` was recorded, if its counts belie it."""
    results = read_json(workspace.final / workspace.results_name)
    found = results.get("injected_tokens")
    if found is not None and bool(found) != inject and not results.get("inject"):
        raise UserError(
            f"{workspace.final} was made with {found} fact tokens in its training text, now "
            f"inject is {inject}; give the same arguments, or another --output-dir"
        )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a stage trains and on what, loaded and found fit; began: how its fact rows began."""

    model: Any
    tokenizer: Any
    data: "Prepared"
    plan: Any
    began: dict[str, Any]


def _load(stage: OpenStage) -> _Loaded:
    """Load the parent, render the data, plan the steps; refuse what cannot be trained."""
    import torch
    from transformers import set_seed

    from domain_tokens.checkpoints import begin_fact_rows
    from domain_tokens.training.gpu_memory import plan_run
    from domain_tokens.training.preflight import refuse_unfit_to_train

    settings, parent = stage.config.training, Path(stage.args.model_path)
    set_seed(settings.seed)
    tokenizer = load_tokenizer(parent)
    model = load_model(parent, dtype=torch.float32)
    refuse_unfit_to_train(model, tokenizer, settings, parent)
    began = begin_fact_rows(model, tokenizer, parent, seed=settings.seed)
    renderer = _renderer(stage, tokenizer)
    data = prepare_stage(stage.args, stage.config, stage.load, renderer, inject=stage.inject)
    _refuse_without_facts(stage, data)
    plan = plan_run(model, data.train, settings)
    return _Loaded(model, tokenizer, data, plan, began)


def run_stage(stage: OpenStage) -> dict[str, Any] | None:
    """Render, train, evaluate once after the last step, save; return the results.

    Whatever can be refused is refused before the first step. The results JSON is written last of
    all, so that a folder that has it is finished. With --dry-run nothing is trained or written, and
    there are no results.
    """
    from domain_tokens.checkpoints import fact_rows_in_words
    from domain_tokens.runs import refuse_not_json, shown_example
    from domain_tokens.training.dry_run import dry_run_estimate
    from domain_tokens.training.preflight import refuse_without_room, refuse_zero_rates

    loaded, settings, workspace = _load(stage), stage.config.training, stage.workspace
    model, tokenizer, data, plan = loaded.model, loaded.tokenizer, loaded.data, loaded.plan
    print(hardware_line(*choose_device(settings.precision)))
    print(f"{_announcement(data, plan, settings)}\n{fact_rows_in_words(loaded.began)}", flush=True)
    print(shown_example(tokenizer, data.train[plan.order[0]]), flush=True)
    if stage.args.dry_run:
        print(dry_run_estimate(model, data.train, plan, settings))
        return None
    refuse_zero_rates(plan, settings)
    results = _results(stage, data, plan) | {"fact_rows": loaded.began}
    card = _card(stage, data, results)
    if is_main_process():
        replaces = len(plan.steps) > settings.save_steps
        refuse_without_room(model, tokenizer, workspace, replaces=replaces)
        refuse_not_json(workspace.final, {"card": card, "results": results})
        workspace.begin(_planned(card, results), commit=card["code"]["commit"])
    results |= _trained(stage, loaded)
    if is_main_process():
        save_checkpoint(model, tokenizer, workspace.work)
        _finish(workspace, data, card, results)
    return results


def _trained(stage: OpenStage, loaded: _Loaded) -> dict[str, Any]:
    """Train the model in place and evaluate it; return what was measured."""
    from domain_tokens.training.loss import evaluate_loss
    from domain_tokens.training.preflight import refuse_useless, weights_digest
    from domain_tokens.training.trainer import train

    settings, workspace, plan = stage.config.training, stage.workspace, loaded.plan
    device, dtype = choose_device(settings.precision)
    peak, before = peak_flops(device, dtype), weights_digest(loaded.model)
    tracking = with_run_name(stage.config.tracking, workspace.final.name)
    outcome = train(
        loaded.model, loaded.data.train, plan, settings, workspace.work, tracking=tracking
    )
    refuse_useless(loaded.model, before)
    return {
        "train_loss": outcome.train_loss,
        "train_runtime": outcome.seconds,
        "train_samples_per_second": len(plan.order) / outcome.seconds,
        "tokens_per_second": sum(plan.tokens) / outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        **_utilisation(outcome, peak, peak_flops(device, dtype)),
        **evaluate_loss(loaded.model, loaded.data.validation, settings),
    }


def _renderer(stage: OpenStage, tokenizer: Any) -> "Renderer":
    from domain_tokens.prompts import Renderer

    return Renderer(
        tokenizer,
        inject=stage.inject,
        injection_mode=stage.config.data.injection_mode,
        loss_on=stage.config.training.loss_on,
    )


def stage_summary(results: dict[str, Any], folder: str, name: str) -> str:
    """Return what a person wants to know of a finished stage, on one screen."""
    loss, mfu = results["eval_loss"], results["mfu"]
    lines = [
        ("train loss", f"{results['train_loss']:.4f}"),
        (f"{results['eval_split'] or 'validation'} loss", "-" if loss is None else f"{loss:.4f}"),
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


def _refuse_without_facts(stage: OpenStage, data: "Prepared") -> None:
    """Refuse a run of the treated arm that would be one of the baseline."""
    if not stage.inject or stage.args.allow_no_injection:
        return
    if not any(example.facts for example in data.train):
        raise UserError(
            f"condition mul_tokens, but no product that could be a fact token is in the "
            f"{len(data.train)} training examples (data.injection_mode is "
            f"{stage.config.data.injection_mode}); give other or more data, or "
            "--allow-no-injection if that is meant"
        )


def _announcement(data: "Prepared", plan: Any, settings: Any) -> str:
    from domain_tokens.training.preflight import long_warmup

    dropped = sorted(data.account.dropped.items())
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped) or "none"
    lines = [
        *data.account.notes,
        f"{len(data.train)} examples ({sum(e.truncated for e in data.train)} truncated; "
        f"dropped: {lost}), {sum(plan.tokens):,} tokens in {len(plan.steps):,} optimizer steps, "
        f"{sum(plan.supervised):,} supervised, {sum(e.facts for e in data.train):,} fact tokens"
        f"{long_warmup(plan, settings)}",
    ]
    if data.account.validation_dropped:
        lines.append(f"{_validation_drops(data.account)}, {len(data.validation)} left")
    return "\n".join(lines)


def _results(stage: OpenStage, data: "Prepared", plan: Any) -> dict[str, Any]:
    config, examples, account = stage.config, data.train, data.account
    touched = sum(e.facts > 0 for e in examples)
    return {
        "condition": stage.args.condition,
        "seed": config.training.seed,
        "dataset": config.data.source,
        "total_train_samples": len(examples),
        "total_val_samples": len(data.validation),
        "optimizer_steps": len(plan.steps),
        "tokens": sum(plan.tokens),
        "supervised_tokens": sum(plan.supervised),
        "dropped": account.dropped,
        "validation_dropped": account.validation_dropped,
        "irregular_rows": account.irregular,
        "truncated": sum(e.truncated for e in examples),
        "inject": stage.inject,
        "injected_examples": touched,
        "injected_tokens": sum(e.facts for e in examples),
        "injection_rate": touched / len(examples),
        "source_composition": account.source_composition,
        "order_digest": digest_of_ids(examples[i].id for i in plan.order),
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


def _card(stage: OpenStage, data: "Prepared", results: dict[str, Any]) -> dict[str, Any]:
    """Return the run card but for the hashes of what is not trained yet.

    It is drawn up before the first step: parent, data and code may change during the run.
    """
    args, config, workspace = stage.args, stage.config, stage.workspace
    device, dtype = choose_device(config.training.precision)
    return {
        "stage": workspace.results_name.removesuffix("_results.json"),
        "command": args.command,
        "condition": args.condition,
        "seed": config.training.seed,
        "config": config.identity(),
        "inject": stage.inject,
        "injection_mode": config.data.injection_mode,
        "injected_examples": results["injected_examples"],
        "injected_tokens": results["injected_tokens"],
        "parent": stage.parent,
        "ancestors": stage.ancestors,
        "base": stage.parent["base"],
        "cross_base": args.cross_base or stage.parent["cross_base"],
        "identity": workspace.identity,
        "formats": format_versions(),
        "data": data.account.fingerprint,
        "sources": source_files(config, args.usual_validation),
        "order_digest": results["order_digest"],
        "fact_rows": results["fact_rows"],
        "code": code_identity(),
        "environment": run_environment(device, str(dtype).removeprefix("torch.")),
    }


def _planned(card: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Return what a resumed leg has to find again: the examples, and what computes."""
    computes = {key: card["environment"][key] for key in ("device_type", "dtype")}
    names = ("order_digest", "optimizer_steps", "tokens", "supervised_tokens", "injected_tokens")
    return {**{name: results[name] for name in names}, **computes, "data": card["data"]}


def _finish(
    workspace: Workspace, data: "Prepared", card: dict[str, Any], results: dict[str, Any]
) -> None:
    work = workspace.work
    if data.account.listed_drops:
        listed = {"dropped": data.account.listed_drops}
        write_json(work / "decontaminated.json", sealed(listed))
    told = {key: value for key, value in results.items() if key != "config"}
    whole = {**card, **hashes_and_files(work), "results": told}
    write_json(work / CARD_NAME, sealed(whole))
    write_json(work / workspace.results_name, sealed(results))
    workspace.complete()
