from .base import Source as Source
from .base import extend_and_save as extend_and_save
from .base import finish_base as finish_base
from .base import load_source_model as load_source_model
from .base import load_source_tokenizer as load_source_tokenizer
from .base import proof_in_words as proof_in_words
from .base import prove_base as prove_base
from .base import refuse_changed_source as refuse_changed_source
from .base import refuse_other_init as refuse_other_init
from .base import refuse_unusable as refuse_unusable
from .base import resolve_source as resolve_source
from .base import source_provenance as source_provenance
from .checks import check_folder as check_folder
from .fact_rows import begin_fact_rows as begin_fact_rows
from .fact_rows import fact_rows_in_words as fact_rows_in_words
from .folder import detach_from_file as detach_from_file
from .folder import load_model as load_model
from .folder import load_tokenizer as load_tokenizer
from .folder import quiet_transformers as quiet_transformers
from .folder import read_card as read_card
from .folder import refuse_unsavable as refuse_unsavable
from .folder import require_extended as require_extended
from .folder import save_checkpoint as save_checkpoint
from .folder import verify_folder as verify_folder
from .hashes import architecture_of as architecture_of
from .hashes import hashes_and_files as hashes_and_files
from .hashes import weights_hash as weights_hash
from .hub import files_of as files_of
from .hub import model_card as model_card
from .hub import pull_checkpoint as pull_checkpoint
from .hub import push_checkpoint as push_checkpoint
from .lineage import BrokenLinkError as BrokenLinkError
from .lineage import current_folder as current_folder
from .lineage import evaluations as evaluations
from .lineage import verify_evaluation as verify_evaluation
from .nanogpt import load_nanogpt as load_nanogpt
from .nanogpt import to_gpt2 as to_gpt2
from .nanogpt_proof import prove_export as prove_export
from .parent import VerifiedParent as VerifiedParent
from .parent import check_parent as check_parent

__all__ = [
    "BrokenLinkError",
    "Source",
    "VerifiedParent",
    "architecture_of",
    "begin_fact_rows",
    "check_folder",
    "check_parent",
    "current_folder",
    "detach_from_file",
    "evaluations",
    "extend_and_save",
    "fact_rows_in_words",
    "files_of",
    "finish_base",
    "hashes_and_files",
    "load_model",
    "load_nanogpt",
    "load_source_model",
    "load_source_tokenizer",
    "load_tokenizer",
    "model_card",
    "proof_in_words",
    "prove_base",
    "prove_export",
    "pull_checkpoint",
    "push_checkpoint",
    "quiet_transformers",
    "read_card",
    "refuse_changed_source",
    "refuse_other_init",
    "refuse_unsavable",
    "refuse_unusable",
    "require_extended",
    "resolve_source",
    "save_checkpoint",
    "source_provenance",
    "to_gpt2",
    "verify_evaluation",
    "verify_folder",
    "weights_hash",
]
