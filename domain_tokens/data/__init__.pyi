from .corpora import digest_of_ids as digest_of_ids
from .corpora import epoch_order as epoch_order
from .corpora import hold_out as hold_out
from .corpora import load_conversations as load_conversations
from .corpora import load_problems as load_problems
from .corpora import load_questions as load_questions
from .decontamination import Decontaminator as Decontaminator
from .decontamination import find_repeat as find_repeat
from .demo_corpora import write_demo_corpora as write_demo_corpora
from .examples import Conversation as Conversation
from .examples import Problem as Problem
from .examples import problem_messages as problem_messages
from .examples import row_line as row_line
from .injection_audit import audit as audit
from .injection_audit import count_tokens as count_tokens
from .prepared import DataReport as DataReport
from .prepared import Prepared as Prepared
from .prepared import StageData as StageData
from .prepared import kept_json as kept_json
from .prepared import prepare_examples as prepare_examples
from .sources import file_hashes as file_hashes
from .sources import read_rows as read_rows
from .sources import source_identity as source_identity
from .validation import VAL_KEY as VAL_KEY
from .validation import UsualValidation as UsualValidation
from .validation import apart_from_training as apart_from_training
from .validation import no_test_rows as no_test_rows
from .validation import separate_validation as separate_validation

__all__ = [
    "VAL_KEY",
    "Conversation",
    "DataReport",
    "Decontaminator",
    "Prepared",
    "Problem",
    "StageData",
    "UsualValidation",
    "apart_from_training",
    "audit",
    "count_tokens",
    "digest_of_ids",
    "epoch_order",
    "file_hashes",
    "find_repeat",
    "hold_out",
    "kept_json",
    "load_conversations",
    "load_problems",
    "load_questions",
    "no_test_rows",
    "prepare_examples",
    "problem_messages",
    "read_rows",
    "row_line",
    "separate_validation",
    "source_identity",
    "write_demo_corpora",
]
