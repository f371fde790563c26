"""Make a base checkpoint: any causal LM, extended by the 45 fact tokens, with a run card."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import checkpoints
from domain_tokens.errors import UserError
from domain_tokens.runs import (
    CONDITIONS,
    SEED,
    Parser,
    Workspace,
    add_output_arguments,
    open_workspace,
    run_script,
)

if TYPE_CHECKING:
    from domain_tokens.checkpoints import Source
    from domain_tokens.runs import PretrainingConfig
    from domain_tokens.vocabulary import FactInit

EXAMPLE = (
    "uv run python scripts/make_base.py --from gpt2-random --condition baseline "
    "--output-dir outputs/hf_baseline_10b"
)
RESULTS = "make_base_results.json"
RANDOM = ("tiny", "gpt2-random")  # shapes with random weights


@dataclass(frozen=True, slots=True)
class BaseRun:
    """One base as it was asked for; config: how to pretrain it, None where that is not meant."""

    source: str
    tokenizer: str | None
    condition: str
    seed: int
    fact_init: "FactInit | None"
    config: "PretrainingConfig | None"
    output_dir: Path
    command: str
    resume: bool
    overwrite: bool


def parse(argv: list[str] | None) -> BaseRun:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="DIR|F.gguf|HUB_ID|F.yaml|tiny|gpt2-random",
        help="a model to extend, a YAML that says how to pretrain one, or random weights",
    )
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument(
        "--tokenizer", metavar="DIR|HUB_ID", help="default: the source's or GPT-2's"
    )
    parser.add_argument("--seed", type=SEED, default=42, help="of random weights and fact rows")
    parser.add_argument(
        "--fact-init",
        choices=("subtoken_mean", "mean", "random"),
        help="how the 45 fact rows begin: near the mean of their spelling (the default) or of all "
        "rows, or as a random row",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one key of the YAML, as in --set training.learning_rate=1e-3",
    )
    add_output_arguments(parser)
    args = parser.parse_args(argv)
    return BaseRun(
        source=args.source,
        tokenizer=args.tokenizer,
        condition=args.condition,
        seed=args.seed,
        fact_init=args.fact_init,
        config=pretraining_config(args.source, args.overrides),
        output_dir=Path(args.output_dir),
        command=args.command,
        resume=args.resume,
        overwrite=args.overwrite,
    )


def pretraining_config(source: str, overrides: list[str]) -> "PretrainingConfig | None":
    """Return the config where the source is a YAML file, else None."""
    if source.endswith((".yaml", ".yml")):
        from domain_tokens.runs import PretrainingConfig, load_config

        return load_config(PretrainingConfig, source, overrides)
    if overrides:
        raise UserError(f"--set {overrides[0]}: only a YAML file given as --from has keys")
    return None


def build(run: BaseRun, workspace: Workspace, source: "Source") -> dict[str, Any]:
    """Make, extend, save and prove the model and its tokenizer; return what the run card says.

    The hashes of the source were taken before it was loaded, and are the same after the proof: so
    they are of what was extended. Everything that can refuse does so before the folder is touched,
    but for the proof of what was written: a folder that fails it is removed.
    """
    from domain_tokens.training import SHAPES, load_examples, new_model, pretrain

    checkpoints.quiet_transformers()
    config, provenance = run.config, checkpoints.source_provenance(source)
    tokenizer = checkpoints.load_source_tokenizer(source)
    trained = None
    if source.model is None:
        shape = SHAPES[run.source] if config is None else config.model
        examples = [] if config is None else load_examples(config, tokenizer)
        model = new_model(shape, tokenizer, seed=run.seed)
    else:
        model = checkpoints.load_source_model(source)
    checkpoints.refuse_unusable(model, tokenizer, workspace.work)
    if run.fact_init is not None:
        checkpoints.refuse_other_init(tokenizer, source.model, run.fact_init)
    init = run.fact_init or "subtoken_mean"
    workspace.begin()
    if config is not None:
        trained = pretrain(model, examples, config, workspace.work)
    made = checkpoints.extend_and_save(model, tokenizer, workspace, seed=run.seed, fact_init=init)
    try:
        proof = checkpoints.prove_base(source, workspace.work, seed=run.seed, fact_init=init)
        checkpoints.refuse_changed_source(source, provenance)
    except UserError:
        shutil.rmtree(workspace.work)
        raise
    return {**made, **provenance, "proof": proof, "pretraining": trained}


def finish(run: BaseRun, workspace: Workspace, source: "Source", made: dict[str, Any]) -> None:
    """Write run card and results; a source folder is the parent."""
    checkpoints.finish_base(
        workspace,
        condition=run.condition,
        seed=run.seed,
        source=run.source,
        parent=source.parent,
        made={"command": run.command, **made},
    )


def main(argv: list[str] | None = None) -> int:
    """Make one base folder."""
    run = parse(argv)
    identity = {
        "source": run.source,
        "condition": run.condition,
        "seed": run.seed,
        "fact_init": run.fact_init or "subtoken_mean",
        "config": run.config and run.config.model_dump(),
    }
    workspace = open_workspace(
        run.output_dir, RESULTS, identity, resume=run.resume, overwrite=run.overwrite
    )
    if workspace.finished:
        print(f"{run.output_dir} is already finished")
        return 0
    made_here = run.config is not None or run.source in RANDOM
    source = checkpoints.resolve_source(None if made_here else run.source, run.tokenizer)
    made = build(run, workspace, source)
    finish(run, workspace, source, made)
    print(f"{run.output_dir}: {made['parameters']:,} parameters, vocabulary {made['vocabulary']:,}")
    print(f"proof: {checkpoints.proof_in_words(made['proof'])}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
