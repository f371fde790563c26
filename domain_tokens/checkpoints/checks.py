"""What makes a checkpoint folder sound: each check returns a detail or raises what is wrong."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints.folder import load_model, load_tokenizer, read_card
from domain_tokens.checkpoints.hashes import checkpoint_hashes, refuse_changed, weight_files
from domain_tokens.checkpoints.lineage import BrokenLinkError, verify_checkpoint
from domain_tokens.errors import UserError
from domain_tokens.runs import SEAL, UNFINISHED_MARKER, read_json, read_sealed
from domain_tokens.treatments import treatment_of
from domain_tokens.vocabulary import FACTS, layout_of

QUESTION = "What is 6 times 9?"
NEW_TOKENS = 32
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
SFT_STAGES = ("tulu_sft", "sft")


class FaultError(Exception):
    """What is wrong with a folder, in one line."""


@dataclass
class CheckedFolder:
    """A folder and what could be loaded from it; None where loading failed."""

    folder: Path
    card: Any = None
    tokenizer: Any = None
    model: Any = None


def tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) of everything in the weight files, one tensor in memory at a time."""
    import torch
    from safetensors import safe_open

    for file in weight_files(folder):
        if file.suffix == ".bin":
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            yield from content.items()
            continue
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (it is not a dict)
                yield name, content.get_tensor(name)


def check_files(subject: CheckedFolder) -> str:
    """All files are there, and the weights can be read to their end."""
    folder = subject.folder
    kept = [file.name for file in weight_files(folder)]
    names = {"pytorch_model.bin" if kept and kept[0].endswith(".bin") else "model.safetensors"}
    for index in folder.glob("*.index.json"):
        names = set(read_json(index)["weight_map"].values())
    missing = [name for name in (*FILES, *sorted(names)) if not (folder / name).is_file()]
    if missing:
        raise FaultError(f"{', '.join(missing)} missing")
    for name in FILES:
        read_json(folder / name)
    return f"{len(FILES) + len(names)} files, {sum(1 for _ in tensors(folder))} tensors"


def check_finished(subject: CheckedFolder) -> str:
    """No run is under way in the folder, and a training stage has written its results."""
    if (subject.folder / UNFINISHED_MARKER).exists():
        raise FaultError(f"{UNFINISHED_MARKER} is there: finish the run with --resume")
    stage = subject.card["stage"] if subject.card else None
    if stage not in SFT_STAGES:
        return "no run under way"
    read_sealed(subject.folder / f"{stage}_results.json")
    return f"{stage}_results.json"


def check_card(subject: CheckedFolder) -> str:
    """The run card is that of this model, file by file; only a base may have none."""
    card, folder = subject.card, subject.folder
    hashes = checkpoint_hashes(folder)
    if card is None:
        if any((folder / f"{stage}_results.json").exists() for stage in SFT_STAGES):
            raise FaultError(
                "an SFT checkpoint without run_card.json: it cannot be told what it is"
            )
        return f"none, so taken for a base made elsewhere; weights {hashes['weights'][:12]}"
    refuse_changed(folder, card, hashes)
    older = [name for name in ("model", SEAL) if name not in card]
    said = f", written before cards had {' and '.join(older)}" if older else ""
    return (
        f"{card['stage']}, {card['condition']}, seed {card['seed']}, "
        f"weights {hashes['weights'][:12]}{said}"
    )


def check_lineage(subject: CheckedFolder) -> str:
    """Every link back to the base is what its child was made from."""
    try:
        return verify_checkpoint(subject.folder)
    except BrokenLinkError as broken:
        raise FaultError(str(broken)) from None


def check_vocabulary(subject: CheckedFolder) -> str:
    """The ids lie as designed and the model has one row for each."""
    layout = layout_of(subject.tokenizer)
    rows = {
        "config": subject.model.config.get_text_config().vocab_size,
        "input embedding": subject.model.get_input_embeddings().weight.shape[0],
        "output layer": subject.model.get_output_embeddings().weight.shape[0],
    }
    for name, count in rows.items():
        if count != layout.total:
            raise FaultError(f"{name} has {count:,} rows, the tokenizer {layout.total:,} tokens")
    facts = f"{layout.first_fact_id}-{layout.total - 1}"
    return f"{layout.base_size:,} + {len(layout.padding_ids)} padding + 45 facts ({facts})"


def check_facts(subject: CheckedFolder) -> str:
    """Each fact token is one id, alone and within a sentence, and decoding keeps it."""
    tokenizer = subject.tokenizer
    for fact in FACTS:
        ids = tokenizer.encode(fact, add_special_tokens=False)
        if len(ids) != 1:
            raise FaultError(f"{fact} is {len(ids)} tokens {ids}; wanted one")
        back = tokenizer.decode(ids, skip_special_tokens=True)
        if back != fact:
            raise FaultError(f"{fact} decodes to {back!r}")
        if tokenizer.encode(f"It is {fact}.", add_special_tokens=False).count(ids[0]) != 1:
            raise FaultError(f"{fact} is lost within a sentence")
    return f"{len(FACTS)} atomic, kept by decode"


def check_tied(subject: CheckedFolder) -> str:
    """Input and output embeddings are one exactly if the config says so, on disk as well."""
    expected = bool(subject.model.config.get_text_config().tie_word_embeddings)
    rows = subject.model.get_input_embeddings().weight
    if (rows is subject.model.get_output_embeddings().weight) != expected:
        raise FaultError(f"config says tie_word_embeddings {expected}, the model is otherwise")
    for name, tensor in tensors(subject.folder) if expected else ():
        if name.endswith("lm_head.weight") and not tensor.float().equal(rows):
            raise FaultError(f"config says tied, but {name} on disk is another matrix")
    return "tied" if expected else "untied, as the config says"


def check_finite(subject: CheckedFolder) -> str:
    """No weight is NaN or infinite."""
    numbers = 0
    for name, tensor in tensors(subject.folder):
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise FaultError(f"{bad} of {tensor.numel()} numbers in {name} are not finite")
        numbers += tensor.numel()
    return f"{numbers:,} numbers"


def check_eos(subject: CheckedFolder) -> str:
    """Generation stops at the tokenizer's EOS."""
    eos = subject.tokenizer.eos_token_id
    configured = read_json(subject.folder / "generation_config.json").get("eos_token_id")
    if eos is None or configured not in (eos, [eos]):
        raise FaultError(f"generation_config.json says {configured}, the tokenizer {eos}")
    return f"{eos} {subject.tokenizer.eos_token!r}"


def check_answer(subject: CheckedFolder) -> str:
    """The model answers a question greedily, from finite logits."""
    import torch

    from domain_tokens.inference import generate
    from domain_tokens.prompts import Renderer

    renderer = Renderer(subject.tokenizer)
    prompt = renderer.prompt([("user", QUESTION)])
    with torch.inference_mode():
        if not subject.model(torch.tensor([prompt])).logits.isfinite().all():
            raise FaultError("the logits are not finite")
    (response,) = generate(
        subject.model, [prompt], eos_id=renderer.eos, max_new_tokens=NEW_TOKENS, batch_size=1
    )
    text = subject.tokenizer.decode(response.token_ids, skip_special_tokens=True)
    treatment = treatment_of(subject.card)
    if treatment is not None and not treatment.rows_are_facts:
        text = treatment.read_back(text)
    return f"{QUESTION} {text!r} (stop: {response.stop_reason})"


# Name, check, and what has to be loaded for it.
CHECKS: tuple[tuple[str, Callable[[CheckedFolder], str], tuple[str, ...]], ...] = (
    ("files", check_files, ()),
    ("finished", check_finished, ("card",)),
    ("run card", check_card, ("card",)),
    ("lineage", check_lineage, ("card",)),
    ("vocabulary", check_vocabulary, ("tokenizer", "model")),
    ("fact tokens", check_facts, ("tokenizer",)),
    ("tied weights", check_tied, ("model",)),
    ("finite weights", check_finite, ()),
    ("EOS", check_eos, ("tokenizer",)),
    ("answer", check_answer, ("tokenizer", "model")),
)


def check_folder(folder: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield (name, passed, detail) for every check; none stops those after it."""
    import torch

    subject, complaints = CheckedFolder(folder), {}
    loaders: dict[str, Callable[[], Any]] = {
        "card": lambda: read_card(folder),
        "tokenizer": lambda: load_tokenizer(folder),
        "model": lambda: load_model(folder, dtype=torch.float32).eval(),
    }
    # Whatever a broken file makes a library raise is a finding about the folder.
    for part, loader in loaders.items():
        try:
            setattr(subject, part, loader())
        except Exception as error:
            complaints[part] = str(error)
    for name, function, needs in CHECKS:
        lacking = [complaints[part] for part in needs if part in complaints]
        try:
            if lacking:
                raise FaultError(f"not checked: {lacking[0]}")
            passed, detail = True, function(subject)
        except Exception as error:
            known = isinstance(error, FaultError | UserError | ValueError)
            passed, detail = False, str(error) if known else repr(error)
        yield name, passed, " ".join(detail.split())
