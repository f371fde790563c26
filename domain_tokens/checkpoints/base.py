"""How a base checkpoint is made: its source loaded, extended, saved, proved, its results last."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.checkpoints.account import Account
from domain_tokens.checkpoints.base_proof import prove_folder, refuse_not_finite
from domain_tokens.checkpoints.base_sources import local_path
from domain_tokens.checkpoints.fact_rows import KEPT, RULES, rule_of_base
from domain_tokens.checkpoints.folder import (
    load_model,
    load_tokenizer,
    refuse_empty_tokenizer,
    refuse_unsavable,
    save_checkpoint,
)
from domain_tokens.checkpoints.hashes import hashes_and_files
from domain_tokens.checkpoints.parent import parent_link
from domain_tokens.checkpoints.tokenizer_proof import prove_folder_tokenizer
from domain_tokens.errors import UserError
from domain_tokens.runs import (
    CARD_NAME,
    Workspace,
    code_identity,
    format_versions,
    hash_files,
    read_json,
    run_environment,
    sealed,
    trial_folder,
)
from domain_tokens.vocabulary import (
    FACTS,
    FactInit,
    extend_model,
    extend_tokenizer,
    gpt2_tokenizer,
    refuse_unfit,
)

if TYPE_CHECKING:
    from domain_tokens.checkpoints.gguf_forward import GgufFile

# What a generation config says besides how to decode.
NOT_DECODING = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "_from_model_config", "use_cache"),
    *("transformers_version", "output_attentions", "output_hidden_states", "output_scores"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a base comes from, on this machine.

    model: a folder or a GGUF file, None for a model that is made here. tokenizer: the folder given
    with --tokenizer, None for the model's own (or GPT-2's). hub_id: of a downloaded model. gguf:
    the file's own tensors and metadata, all accounted for. parent: path and hashes of a folder on
    this machine, sha256: of a file, both taken before anything else was read from it.
    """

    model: Path | None
    tokenizer: Path | None
    hub_id: str | None = None
    gguf: "GgufFile | None" = None
    parent: dict[str, Any] | None = None
    sha256: str | None = None


def resolve_source(model: str | None, tokenizer: str | None) -> Source:
    """Find both on this machine or a hub. Raises UserError for what is not there."""
    path = None if model is None else local_path(model, option="--from")
    given = None if tokenizer is None else local_path(tokenizer, option="--tokenizer")
    if given is not None and given.is_file():
        raise UserError(f"--tokenizer {tokenizer} is a file; wanted a folder or a hub id")
    if path is not None and path.is_file():
        from domain_tokens.checkpoints.gguf_forward import read_gguf
        from domain_tokens.checkpoints.gguf_proof import account_for_gguf

        digest = hash_files([path])
        file = read_gguf(path)
        account_for_gguf(file)
        return Source(path, given, gguf=file, sha256=digest)
    if model is not None and Path(model).is_dir():
        return Source(path, given, parent=parent_link(Path(model)))
    return Source(path, given, hub_id=model)


def load_source_tokenizer(source: Source) -> Any:
    """Load the tokenizer that was given, the model's own, or GPT-2's, which needs no hub.

    Raises UserError where there is none, or none that stops at an EOS.
    """
    path = source.tokenizer or source.model
    if path is None:
        return gpt2_tokenizer()
    if path.is_dir():
        return load_tokenizer(path)
    from domain_tokens.checkpoints.gguf import load_gguf_tokenizer

    assert source.gguf is not None
    return load_gguf_tokenizer(source.gguf)


def load_source_model(source: Source) -> Any:
    """Load the source's model in fp32, all tensors accounted for, nothing drawn at random.

    Raises UserError where a tensor is missing, unknown or not finite, and for another kind of
    model.
    """
    import torch

    path = source.model
    assert path is not None
    state = torch.random.get_rng_state()
    if source.gguf is not None:
        from domain_tokens.checkpoints.gguf import load_gguf_model

        model = load_gguf_model(source.gguf)
    else:
        model = load_model(path, dtype=torch.float32)
        refuse_not_finite(path)
    if not torch.random.get_rng_state().equal(state):
        raise UserError(f"{path}: transformers drew random numbers while it was loaded")
    dropped = dropped_settings(source)
    if dropped:
        print(
            f"generation_config.json: {', '.join(dropped)} dropped: decoding is this project's own",
            flush=True,
        )
    return model


def dropped_settings(source: Source) -> list[str]:
    """Return the decoding settings of a source folder that its base will not have."""
    path = None if source.model is None else source.model / "generation_config.json"
    if path is None or not path.is_file():
        return []
    return sorted(read_json(path).keys() - NOT_DECODING)


def refuse_unusable(model: Any, tokenizer: Any, folder: Path) -> None:
    """Raise UserError, before anything is written, where no stage could use what would be made."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no EOS token, and a model trained with it never stops; set "
            "eos_token in its tokenizer_config.json, or give another one with --tokenizer"
        )
    refuse_empty_tokenizer(tokenizer, "the source")
    rows = model.get_input_embeddings().weight.shape[0]
    trial = copy.deepcopy(tokenizer)
    try:
        layout = extend_tokenizer(trial, model_vocab_size=rows)
        refuse_unfit(rows, layout, trial)
    except ValueError as error:
        raise UserError(str(error)) from None
    with trial_folder(folder) as trial_path:
        refuse_unsavable(model, trial, Path(trial_path))


def refuse_other_init(tokenizer: Any, source: Path | None, init: FactInit) -> None:
    """Raise UserError where fact rows are asked to begin in one way and the source has others.

    Rows that come with a source are kept.
    """
    if FACTS[0] not in tokenizer.get_vocab():
        return
    rule = rule_of_base(source) if source is not None and source.is_dir() else None
    if rule != RULES[init]:
        raise UserError(
            f"--fact-init {init}: {source} has its 45 fact rows already ({rule or 'no card tells'}"
            "), and they are kept; leave --fact-init out, or begin with a model that has none"
        )


def extend_and_save(
    model: Any,
    tokenizer: Any,
    workspace: Workspace,
    *,
    seed: int,
    fact_init: FactInit = "subtoken_mean",
) -> dict:
    """Give model and tokenizer the padding and fact tokens, save both, return what was made.

    Raises UserError where the model's rows and the tokenizer do not belong together.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    try:
        layout = extend_tokenizer(tokenizer, model_vocab_size=rows)
        extend_model(model, layout, tokenizer, seed=seed, init=fact_init)
    except ValueError as error:
        raise UserError(str(error)) from None
    save_checkpoint(model, tokenizer, workspace.work)
    kept = rows == layout.total
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": layout.total,
        "first_fact_id": layout.first_fact_id,
        "fact_rows": KEPT if kept else RULES[fact_init],
    }


def prove_base(
    source: Source, written: Path, *, seed: int, fact_init: FactInit = "subtoken_mean"
) -> dict[str, Any]:
    """Prove the written folder against its source's own files; return what was compared.

    A model that is made here has nothing to be compared with but a tokenizer that was given.
    Raises UserError at the first difference.
    """
    if source.gguf is not None:
        from domain_tokens.checkpoints.gguf import splitter_of
        from domain_tokens.checkpoints.gguf_proof import prove_gguf

        given = source.tokenizer
        splitter = None if given else splitter_of(source.gguf)
        return prove_gguf(
            source.gguf, written, seed=seed, splitter=splitter, given=given, fact_init=fact_init
        )
    if source.model is not None:
        tokenizer = source.tokenizer or source.model
        return prove_folder(source.model, tokenizer, written, seed=seed, fact_init=fact_init)
    account = Account()
    if source.tokenizer is not None:
        tokenizer = load_tokenizer(written)
        prove_folder_tokenizer(source.tokenizer, written, tokenizer, account)
    return {
        "against": "the tokenizer that was given" if source.tokenizer else None,
        **vars(account),
    }


def proof_in_words(proof: dict[str, Any]) -> str:
    """Return what was compared, in one line."""
    if proof["against"] is None:
        return "nothing to compare with: made here"
    counts = {"tensors": "tensors", "config_keys": "config keys", "tokens": "tokens"}
    counts |= {"merges": "merges", "texts": "texts"}
    words = ", ".join(f"{proof[key]:,} {name}" for key, name in counts.items() if proof[key])
    logits = proof.get("largest_logit_difference")
    words += f" equal to {proof['against']}"
    words += "" if logits is None else f", logits to {logits:.1e}"
    left_out = sorted(proof["left_out"])
    return words + (f"; left out: {', '.join(left_out)}" if left_out else "")


def source_provenance(source: Source) -> dict[str, Any]:
    """Return what the run card says of the source besides its name."""
    provenance: dict[str, Any] = {"dropped_decoding_settings": dropped_settings(source)}
    if source.hub_id is not None and source.model is not None:
        provenance["hub_revision"] = source.model.name  # a snapshot's folder is named by its commit
    if source.sha256 is not None:
        provenance["source_sha256"] = source.sha256
    return provenance


def refuse_changed_source(source: Source, provenance: dict[str, Any]) -> None:
    """Raise UserError where a source is no longer what the run card will say of it.

    Called after the proof, so that what was read in between is what was hashed before.
    """
    file = source.model if source.sha256 is not None else None
    same = source_provenance(source) == provenance
    same = same and (file is None or hash_files([file]) == source.sha256)
    if source.parent is not None:
        same = same and parent_link(Path(source.parent["path"])) == source.parent
    if not same:
        raise UserError(
            f"{source.model} changed while it was read; let no other process write there and "
            "start again"
        )


def finish_base(
    workspace: Workspace,
    *,
    condition: str,
    seed: int,
    source: str,
    parent: dict[str, Any] | None,
    made: dict[str, Any],
) -> None:
    """Write the run card and, last of all, the results.

    parent: path and weights of a base this one was made from. made: goes into card and results.
    """
    from domain_tokens.runs import base_models, write_record

    work = workspace.work
    if parent is not None and made["fact_rows"] == KEPT:
        made = {**made, "fact_rows": rule_of_base(Path(parent["path"])) or KEPT}
    card = {
        "stage": "base",
        "condition": condition,
        "seed": seed,
        "source": source,
        **hashes_and_files(work),
        "parent": parent,
        **made,
        "identity": workspace.identity,
        "formats": format_versions(),
        "code": code_identity(),
        "environment": run_environment("cpu", "float32"),
    }
    results = {"condition": condition, "source": source, "weights": card["weights"], **made}
    card_kind, results_kind = base_models(made)
    write_record(work / CARD_NAME, card_kind, sealed({**card, "results": results}))
    write_record(work / workspace.results_name, results_kind, sealed(results))
    workspace.complete()
