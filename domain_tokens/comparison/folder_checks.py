"""What makes an evaluation folder sound: items, tokens, data and lineage."""

from collections.abc import Callable, Iterator
from pathlib import Path

from domain_tokens.checkpoints import (
    BrokenLinkError,
    current_folder,
    evaluations,
    verify_evaluation,
)
from domain_tokens.errors import UserError
from domain_tokens.evaluation import verify_data, verify_tokens
from domain_tokens.runs import read_sealed


def check_evaluation(folder: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield (name, passed, detail) for each evaluation: its items, then its chain."""
    from domain_tokens.comparison.runs import load_run

    def items() -> str:
        run = load_run(folder, condition=None)
        counts = {name: len(e.items) for name, e in run.evaluations.items()}
        notices = [notice for e in run.evaluations.values() for notice in e.notices]
        return "; ".join([", ".join(f"{n} {name} items" for name, n in counts.items()), *notices])

    checks = [("items", items)]
    for results in evaluations(folder):
        name = results.stem.split("_")[0]
        checks += [
            (f"tokens, {name}", lambda r=results: _with_checkpoint(verify_tokens, r)),
            (f"data, {name}", lambda r=results: _with_checkpoint(verify_data, r)),
            (f"lineage, {name}", lambda r=results: verify_evaluation(r)),
        ]
    for name, function in checks:
        try:
            yield name, True, function()
        except (BrokenLinkError, UserError) as error:
            yield name, False, str(error)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            yield name, False, f"{folder}: not as an evaluation writes it ({error!r})"


def _with_checkpoint(check: Callable[[Path, Path], str], results: Path) -> str:
    card = read_sealed(results)["card"]
    folder = current_folder(Path(card["model_path"]), neighbour_of=results.parent)
    return check(results, folder) if folder.is_dir() else f"not checked: {folder} (not here)"
