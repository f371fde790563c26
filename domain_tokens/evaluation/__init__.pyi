from .arithmetic import probe_questions as probe_questions
from .arithmetic import probes_fingerprint as probes_fingerprint
from .chat import ChatSession as ChatSession
from .checkpoint import DECODE_DEFAULTS as DECODE_DEFAULTS
from .checkpoint import LoadedCheckpoint as LoadedCheckpoint
from .checkpoint import evaluation_card as evaluation_card
from .checkpoint import evaluation_identity as evaluation_identity
from .checkpoint import load_for_evaluation as load_for_evaluation
from .checkpoint import resolved_rationale_seed as resolved_rationale_seed
from .checkpoint import response_text as response_text
from .endpoints import distractors as distractors
from .endpoints import gold_rationale_log_probs as gold_rationale_log_probs
from .endpoints import table_scores as table_scores
from .fact_tokens import facts_in_solution as facts_in_solution
from .fact_tokens import facts_with_product as facts_with_product
from .gsm8k import answer_endpoints as answer_endpoints
from .gsm8k import gsm8k_questions as gsm8k_questions
from .gsm8k import read_golds as read_golds
from .metrics import SHOWN as SHOWN
from .metrics import arithmetic_metrics as arithmetic_metrics
from .metrics import decoding_speed as decoding_speed
from .metrics import gsm8k_metrics as gsm8k_metrics
from .metrics import probe_verdicts as probe_verdicts
from .metrics import problem_keys as problem_keys
from .preflight import refuse_broken_weights as refuse_broken_weights
from .preflight import refuse_long_questions as refuse_long_questions
from .probes import probes as probes
from .responses import Answers as Answers
from .responses import Question as Question
from .responses import answer_questions as answer_questions
from .responses import item_of as item_of
from .verification import OlderError as OlderError
from .verification import verify_data as verify_data
from .verification import verify_results as verify_results
from .verification import verify_tokens as verify_tokens

__all__ = [
    "DECODE_DEFAULTS",
    "SHOWN",
    "Answers",
    "ChatSession",
    "LoadedCheckpoint",
    "OlderError",
    "Question",
    "answer_endpoints",
    "answer_questions",
    "arithmetic_metrics",
    "decoding_speed",
    "distractors",
    "evaluation_card",
    "evaluation_identity",
    "facts_in_solution",
    "facts_with_product",
    "gold_rationale_log_probs",
    "gsm8k_metrics",
    "gsm8k_questions",
    "item_of",
    "load_for_evaluation",
    "probe_questions",
    "probe_verdicts",
    "probes",
    "probes_fingerprint",
    "problem_keys",
    "read_golds",
    "refuse_broken_weights",
    "refuse_long_questions",
    "resolved_rationale_seed",
    "response_text",
    "table_scores",
    "verify_data",
    "verify_results",
    "verify_tokens",
]
