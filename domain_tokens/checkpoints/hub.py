"""Checkpoints to and from a Hugging Face hub, each with its run card told as a model card."""

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints.checks import (
    CheckedFolder,
    FaultError,
    check_card,
    check_files,
    check_finished,
)
from domain_tokens.checkpoints.folder import read_card, verify_folder
from domain_tokens.checkpoints.hashes import DECISIVE_FILES
from domain_tokens.errors import UserError
from domain_tokens.runs import CARD_NAME, make_folder, read_json, read_sealed

# What a reader needs; optimizer states, event files and whatever else lies there stay at home.
SENT = (
    "*.safetensors",
    "model.safetensors.index.json",
    *DECISIVE_FILES,
    CARD_NAME,
    "train_log.jsonl",
    "*_results.json",
    "export_report.json",
    "decontaminated.json",
)
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Number:
    """A line of the model card's table, with its 95 % interval where it has one."""

    name: str
    value: str
    interval: str = "–"


def files_of(folder: Path) -> list[Path]:
    """Return the files of a finished checkpoint that are sent.

    Raises UserError where the folder is unfinished, damaged or not what its run card says.
    """
    verify_folder(folder)
    card = read_card(folder)
    if card is None:
        raise UserError(f"{folder} has no {CARD_NAME}; only what has one is published")
    subject = CheckedFolder(folder, card=card)
    for check in (
        check_files,
        check_finished,
        check_card,
    ):
        try:
            check(subject)
        except FaultError as fault:
            raise UserError(f"{folder}: {fault}; fix that before it is published") from None
    files = {path for pattern in SENT for path in folder.glob(pattern) if path.is_file()}
    return sorted(files)


def numbers(evaluation: Path, weights: str) -> list[Number]:
    """Return what an evaluation folder says of the checkpoint with these weights.

    Raises UserError where the folder has no results, or those of another checkpoint.
    """
    rows: list[Number] = []
    readers = {"gsm8k": _problems, "arithmetic": _probes, "stories": _stories}
    for name, numbers_of in readers.items():
        path = evaluation / f"{name}_results.json"
        if not path.is_file():
            continue
        results = read_sealed(path)
        if results["card"]["weights"] != weights:
            raise UserError(f"{path} is of another checkpoint; give the evaluation of this one")
        rows += numbers_of(results["metrics"])
    if not rows:
        raise UserError(f"{evaluation} holds no results; wanted an evaluation folder")
    return rows


def _problems(metrics: dict[str, Any]) -> list[Number]:
    low, high = metrics["accuracy_interval_95"]
    counted = f"{metrics['correct']} of {metrics['total']} = {metrics['accuracy']:.2%}"
    rows = [
        Number("GSM8K test, strict", counted, f"{low:.2%} to {high:.2%}"),
        Number("what the best constant answer scores", f"{metrics['best_constant_accuracy']:.2%}"),
        Number("stop rate", f"{metrics['stop_rate']:.1%}"),
    ]
    if "g1" in metrics:
        rows.append(Number(f"G1, K = {metrics['g1_rationales']}", f"{metrics['g1']:.4f}"))
    return rows


def _probes(metrics: dict[str, Any]) -> list[Number]:
    from domain_tokens.statistics import wilson_interval

    rows = [Number("A1, nats", f"{metrics['a1']:.4f}")]
    for name, part in metrics["category_accuracies"].items():
        low, high = wilson_interval(part["correct"], part["total"])
        counted = f"{part['correct']} of {part['total']} = {part['accuracy']:.1%}"
        rows.append(Number(f"probes, {name}", counted, f"{low:.1%} to {high:.1%}"))
    return rows


def _stories(metrics: dict[str, Any]) -> list[Number]:
    low, high = metrics["accuracy_interval_95"]
    counted = f"{metrics['correct']} of {metrics['total']} = {metrics['accuracy']:.1%}"
    return [
        Number("A2 (stories), nats", f"{metrics['a2']:.4f}"),
        Number("stories", counted, f"{low:.1%} to {high:.1%}"),
        Number(
            "what repeating the larger number scores", f"{metrics['larger_number_accuracy']:.1%}"
        ),
    ]


def model_card(folder: Path, evaluations: Sequence[Path]) -> str:
    """Return the model card (Markdown with the hub's YAML head) of a checkpoint folder."""
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    card = read_json(folder / CARD_NAME)
    table = [n for evaluation in evaluations for n in numbers(evaluation, card["weights"])]
    about = ModelCardData(
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["domain-tokens", card["condition"], card["stage"]],
    )
    loader = FileSystemLoader(TEMPLATES)
    page = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True).get_template(
        "model_card.md.j2"
    )
    return page.render(head=about.to_yaml(), card=card, numbers=table)


def push_checkpoint(
    folder: Path, repository: str, *, evaluations: Sequence[Path], private: bool
) -> str:
    """Send a finished checkpoint with its model card; return the URL of the commit.

    Raises UserError where the folder is unfit or the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = files_of(folder)
    page = model_card(folder, evaluations)
    operations = [CommitOperationAdd(path.name, str(path)) for path in files]
    operations.append(CommitOperationAdd("README.md", page.encode()))
    weights = read_json(folder / CARD_NAME)["weights"]
    with speaking_to_the_hub(repository):
        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.create_commit(
            repository, operations, commit_message=f"Checkpoint with weights {weights[:12]}"
        )
    return str(commit.commit_url)


def pull_checkpoint(repository: str, folder: Path, *, revision: str | None) -> str:
    """Fetch a checkpoint to a new folder and verify it; return the hash of its weights.

    The folder appears when all is there and is what its run card says. Raises UserError otherwise.
    """
    from huggingface_hub import snapshot_download

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use; give a new folder")
    work = folder.with_name(f".{folder.name}.pulling")
    make_folder(work)
    with speaking_to_the_hub(repository):
        patterns = [*SENT, "README.md"]
        snapshot_download(repository, revision=revision, local_dir=work, allow_patterns=patterns)
    shutil.rmtree(work / ".cache", ignore_errors=True)  # the library's own notes
    try:
        files_of(work)
    except UserError as error:
        shutil.rmtree(work)
        raise UserError(f"{repository} is no sound checkpoint of ours: {error}") from None
    work.rename(folder)
    return str(read_json(folder / CARD_NAME)["weights"])


@contextmanager
def speaking_to_the_hub(repository: str) -> Generator[None]:
    """Turn what the hub or the network refuses into one line that names the endpoint."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = constants.ENDPOINT
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repository} is no repository name: {error}") from None
    except RevisionNotFoundError:
        raise UserError(f"{repository} at {where} has no such --revision") from None
    except (RepositoryNotFoundError, LocalTokenNotFoundError):
        raise UserError(
            f"{repository} is not at {where}, or not for you; check the name, and sign in with "
            "`uv run hf auth login`"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(f"{where} answered {status} for {repository}: {_reason(error)}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise UserError(f"{where} cannot be reached ({_reason(error)}); {ADVICE}") from None
    except Exception as error:
        if "Connect" not in type(error).__name__ and "Timeout" not in type(error).__name__:
            raise
        raise UserError(f"{where} cannot be reached ({_reason(error)}); {ADVICE}") from None


ADVICE = "check the network, or name another hub in HF_ENDPOINT"


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
