"""One SFT stage, from the parent checkpoint to a finished checkpoint folder."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.checkpoints import (
    VerifiedParent,
    check_parent,
    detach_from_file,
    load_model,
    load_tokenizer,
    save_checkpoint,
)
from domain_tokens.data import digest_of_ids
from domain_tokens.errors import UserError
from domain_tokens.runs import (
    PACKAGE,
    Device,
    Workspace,
    choose_device,
    code_hash,
    code_identity,
    format_versions,
    hardware_line,
    is_main_process,
    open_workspace,
    peak_flops,
    run_environment,
)
from domain_tokens.training.stage_data import _validation_drops, prepare_stage, source_files
from domain_tokens.training.stage_run import StageRun
from domain_tokens.training.stage_treatment import (
    decide_treatment,
    parents_treatment,
    refuse_other_run,
    refuse_without_facts,
    treatment_in_words,
)
from domain_tokens.training.tracking import require_trackers, with_run_name
from domain_tokens.treatments import Treatment, treatment_from

if TYPE_CHECKING:
    from domain_tokens.data import Prepared, StageData
    from domain_tokens.prompts import Renderer
    from domain_tokens.runs import SFTConfig


@dataclass(frozen=True, slots=True)
class OpenStage:
    """One stage that was found fit to begin: what it was told, its parent, its output folder.

    treatment: the record of its parent's run card. parent: as it was verified, which is what the
    run card says of it.
    """

    run: StageRun
    load: Callable[["SFTConfig"], "StageData"]
    treatment: dict[str, Any] | None
    workspace: Workspace
    parent: VerifiedParent

    @property
    def config(self) -> "SFTConfig":
        """The resolved config."""
        return self.run.config

    @property
    def inject(self) -> bool:
        """Whether products in assistant turns become fact tokens."""
        return self.run.inject


def open_stage(
    run: StageRun, load: Callable[["SFTConfig"], "StageData"], results_name: str
) -> OpenStage:
    """Check the parent, open the output folder; raises UserError where a run may not begin."""
    config, inject = run.config, run.inject
    require_trackers(config.tracking)
    parent = check_parent(run.model_path, condition=run.condition, cross_base=run.cross_base)
    treatment = parents_treatment(run, parent.card)
    if run.condition == "mul_tokens" and not inject and not run.allow_no_injection:
        raise UserError(
            "--condition mul_tokens would be trained without fact tokens; add --inject-mul-tokens, "
            "or --allow-no-injection if that is meant"
        )
    identity = {
        "condition": run.condition,
        "config": config.identity(),
        "parent_weights": parent.hashes["weights"],
        "formats": format_versions(),
        "inject": inject,
        "code": _deciding_code(load),
    }
    # Other processes may look after the first one has begun to write.
    resume = run.resume or not (is_main_process() or run.overwrite)
    workspace = open_workspace(
        run.output_dir, results_name, identity, resume=resume, overwrite=run.overwrite
    )
    if workspace.finished:
        refuse_other_run(workspace, config, inject=inject)
    return OpenStage(run, load, treatment, workspace, parent)


def _deciding_code(load: Callable) -> str:
    """Return the hash of the code that decides data and training of a stage."""
    modules = [PACKAGE / "training" / "trainer.py", PACKAGE / "data" / "prepared.py"]
    folder = PACKAGE / "checkpoints" / "folder.py"
    alone = [Path(__file__), folder, Path(inspect.getfile(load))]
    return code_hash(modules, alone=alone)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a stage trains, where and on what, loaded and found fit.

    began: how its fact rows began. treatment: what becomes of facts, as the run card records it.
    """

    device: Device
    model: Any
    tokenizer: Any
    data: "Prepared"
    plan: Any
    began: dict[str, Any]
    treatment: dict[str, Any] | None


def _load(stage: OpenStage) -> _Loaded:
    """Load the parent, render the data, plan the steps; refuse what cannot be trained."""
    import torch
    from transformers import set_seed

    from domain_tokens.checkpoints import begin_fact_rows
    from domain_tokens.training.gpu_memory import plan_run
    from domain_tokens.training.preflight import refuse_unfit_to_train

    settings, parent = stage.config.training, stage.run.model_path
    device = choose_device(settings.precision)
    set_seed(settings.seed)
    tokenizer = load_tokenizer(parent)
    model = load_model(parent, dtype=torch.float32)
    detach_from_file(model)
    stage.parent.refuse_changed_since()
    refuse_unfit_to_train(model, tokenizer, settings, parent)
    began = begin_fact_rows(model, tokenizer, parent, seed=settings.seed)
    treatment = decide_treatment(stage, _renderer(stage, tokenizer, None))
    written = treatment if stage.inject else None
    renderer = _renderer(stage, tokenizer, treatment_from(written))
    data = prepare_stage(stage.run, stage.load, renderer, parent=stage.parent, treatment=written)
    refuse_without_facts(stage, data, treatment)
    plan = plan_run(model, data.train, settings, device)
    return _Loaded(device, model, tokenizer, data, plan, began, treatment)


def run_stage(stage: OpenStage) -> dict[str, Any] | None:
    """Render, train, evaluate once after the last step, save; return the results.

    Whatever can be refused is refused before the first step. The results JSON is written last of
    all, so that a folder that has it is finished. With --dry-run nothing is trained or written, and
    there are no results.
    """
    from domain_tokens.checkpoints import fact_rows_in_words
    from domain_tokens.runs import refuse_not_json, shown_example
    from domain_tokens.training.dry_run import dry_run_estimate
    from domain_tokens.training.preflight import (
        refuse_without_memory_to_train,
        refuse_without_room,
        refuse_zero_rates,
    )
    from domain_tokens.training.stage_files import finish_stage, planned

    loaded, settings, workspace = _load(stage), stage.config.training, stage.workspace
    model, tokenizer, data, plan = loaded.model, loaded.tokenizer, loaded.data, loaded.plan
    print(hardware_line(*loaded.device))
    told = [_announcement(data, plan, settings), treatment_in_words(loaded.treatment)]
    print(*filter(None, [*told, fact_rows_in_words(loaded.began)]), sep="\n", flush=True)
    print(shown_example(tokenizer, data.train[plan.order[0]]), flush=True)
    if stage.run.dry_run:
        print(dry_run_estimate(model, data.train, plan, settings, loaded.device))
        return None
    refuse_zero_rates(plan, settings)
    refuse_without_memory_to_train(model, loaded.device)
    results = _results(stage, data, plan) | {"fact_rows": loaded.began}
    card: dict[str, Any] = {**_card(stage, loaded, results), "treatment": loaded.treatment}
    if is_main_process():
        replaces = len(plan.steps) > settings.save_steps
        refuse_without_room(model, tokenizer, workspace, replaces=replaces)
        refuse_not_json(workspace.final, {"card": card, "results": results})
        workspace.begin(planned(card, results), commit=card["code"]["commit"])
    results |= _trained(stage, loaded)
    if is_main_process():
        save_checkpoint(model, tokenizer, workspace.work)
        finish_stage(workspace, data.account, card, results)
    return results


def _trained(stage: OpenStage, loaded: _Loaded) -> dict[str, Any]:
    """Train the model in place and evaluate it; return what was measured."""
    from domain_tokens.training.loss import evaluate_loss
    from domain_tokens.training.preflight import refuse_useless, weights_digest
    from domain_tokens.training.trainer import Surroundings, train

    settings, workspace, plan = stage.config.training, stage.workspace, loaded.plan
    peak, before = peak_flops(*loaded.device), weights_digest(loaded.model)
    tracking = with_run_name(stage.config.tracking, workspace.final.name)
    around = Surroundings(loaded.device, tracking)
    outcome = train(loaded.model, loaded.data.train, plan, settings, workspace.work, around=around)
    refuse_useless(loaded.model, before)
    return {
        "train_loss": outcome.train_loss,
        "train_runtime": outcome.seconds,
        "train_samples_per_second": len(plan.order) / outcome.seconds,
        "tokens_per_second": sum(plan.tokens) / outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "flops": outcome.flops,
        **_utilisation(outcome, peak, peak_flops(*loaded.device)),
        **evaluate_loss(loaded.model, loaded.data.validation, settings, loaded.device),
    }


def _renderer(stage: OpenStage, tokenizer: Any, treatment: Treatment | None) -> "Renderer":
    from domain_tokens.prompts import Renderer

    return Renderer(
        tokenizer,
        treatment=treatment,
        injection_mode=stage.config.data.injection_mode,
        loss_on=stage.config.training.loss_on,
    )


def stage_summary(results: dict[str, Any], folder: Path, name: str) -> str:
    """Return what a person wants to know of a finished stage, on one screen."""
    loss, mfu = results["eval_loss"], results["mfu"]
    lines = [
        ("train loss", f"{results['train_loss']:.4f}"),
        (f"{results['eval_split'] or 'validation'} loss", "-" if loss is None else f"{loss:.4f}"),
        ("optimizer steps", f"{results['optimizer_steps']:,}"),
        ("tokens", f"{results['tokens']:,} ({results['supervised_tokens']:,} supervised)"),
        (
            "fact tokens",
            f"{results['injected_tokens']:,} in {results['injected_example_share']:.1%} of the "
            "examples",
        ),
        (
            "speed",
            f"{results['tokens_per_second']:,.0f} tokens/s, {results['train_runtime']:,.0f} s"
            + ("" if mfu is None else f", {mfu:.0%} of the peak rate"),
        ),
        ("peak memory", f"{results['peak_memory_bytes'] / 2**30:.1f} GiB"),
        ("checkpoint", str(folder)),
        ("results", f"{folder}/{name}"),
    ]
    return "\n".join(f"  {key:<16} {value}" for key, value in lines)


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
    untreated = sum(e.untreated for e in data.train)
    if untreated:
        lines.append(f"{untreated} matches stay text: with what is written there no row has room")
    if data.account.validation_dropped:
        lines.append(f"{_validation_drops(data.account)}, {len(data.validation)} left")
    return "\n".join(lines)


def _results(stage: OpenStage, data: "Prepared", plan: Any) -> dict[str, Any]:
    config, examples, account = stage.config, data.train, data.account
    touched = sum(e.facts > 0 for e in examples)
    return {
        "condition": stage.run.condition,
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
        "solutions_without_equations": account.no_equations,
        "truncated": sum(e.truncated for e in examples),
        "inject": stage.inject,
        "injected_examples": touched,
        "injected_tokens": sum(e.facts for e in examples),
        "injected_example_share": touched / len(examples),
        "injection_rate": touched / len(examples),  # its older name
        "untreated_places": sum(e.untreated for e in examples),
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


def _card(stage: OpenStage, loaded: _Loaded, results: dict[str, Any]) -> dict[str, Any]:
    """Return the run card but for the hashes of what is not trained yet.

    It is drawn up before the first step: parent, data and code may change during the run.
    """
    run, config, workspace, data = stage.run, stage.config, stage.workspace, loaded.data
    device, dtype = loaded.device
    return {
        "stage": workspace.results_name.removesuffix("_results.json"),
        "command": run.command,
        "condition": run.condition,
        "seed": config.training.seed,
        "config": config.identity(),
        "inject": stage.inject,
        "injection_mode": config.data.injection_mode,
        "injected_examples": results["injected_examples"],
        "injected_tokens": results["injected_tokens"],
        "parent": stage.parent.link,
        "ancestors": stage.parent.ancestors,
        "base": stage.parent.link["base"],
        "cross_base": run.cross_base or stage.parent.link["cross_base"],
        "identity": workspace.identity,
        "formats": format_versions(),
        "data": data.account.fingerprint,
        "sources": source_files(config, run.usual_validation),
        "order_digest": results["order_digest"],
        "fact_rows": results["fact_rows"],
        "code": code_identity(),
        "environment": run_environment(device, str(dtype).removeprefix("torch.")),
    }
