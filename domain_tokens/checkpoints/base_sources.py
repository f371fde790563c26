"""Where a base comes from: a folder, a hub id resolved to a local snapshot, or a GGUF file."""

from pathlib import Path

from domain_tokens.errors import UserError

GGUF = ".gguf"
WANTED = "a Hugging Face folder, a GGUF file, a hub id, a pretraining YAML, tiny or gpt2-random"
# One level deep, and no second copy of the weights in another format.
FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
NOT_READ = ("*/*", "consolidated*")


def local_path(source: str, *, option: str) -> Path:
    """Return the local folder or GGUF file of a source; a hub id is downloaded, or is in the cache.

    option: the argument it was given by, for the error. Raises UserError where nothing is there.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        if source.endswith(GGUF):
            return path
        raise UserError(f"{option} {source} is a file; wanted {WANTED}")
    if source.endswith(GGUF) or source.startswith((".", "/", "~", "outputs/")):
        raise UserError(f"{source} not found; wanted {WANTED}")
    if source.count("/") > 1:
        raise UserError(f"{source} not found; wanted {WANTED}")
    return _snapshot(source, option)


def _snapshot(hub_id: str, option: str) -> Path:
    from huggingface_hub import snapshot_download

    def download(*patterns: str) -> Path:
        return Path(
            snapshot_download(hub_id, allow_patterns=list(patterns), ignore_patterns=list(NOT_READ))
        )

    try:
        folder = download(*FILES)
        if not any(folder.glob("*.safetensors")):
            folder = download(*FILES, "*.bin")
        return folder
    except Exception:  # the hub's library raises classes of its own and of three others
        raise UserError(
            f"{option} {hub_id}: not here, and not on a hub that can be reached; wanted {WANTED}"
        ) from None
