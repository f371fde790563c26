from .arithmetic import probe_questions as probe_questions
from .arithmetic import probes_fingerprint as probes_fingerprint
from .chat import ChatSession as ChatSession
from .checkpoint import LoadedCheckpoint as LoadedCheckpoint
from .checkpoint import evaluation_card as evaluation_card
from .checkpoint import evaluation_identity as evaluation_identity
from .checkpoint import load_for_evaluation as load_for_evaluation
from .checkpoint import refuse_other_data_treatment as refuse_other_data_treatment
from .checkpoint import resolved_rationale_seed as resolved_rationale_seed
from .endpoints import distractors as distractors
from .endpoints import gold_rationale_log_probs as gold_rationale_log_probs
from .endpoints import table_scores as table_scores
from .evaluation_run import EvaluationRun as EvaluationRun
from .evaluation_run import parse_evaluation as parse_evaluation
from .fact_tokens import facts_in_solution as facts_in_solution
from .fact_tokens import facts_with_product as facts_with_product
from .fact_tokens import names_of as names_of
from .fact_tokens import read_response as read_response
from .gsm8k import answer_endpoints as answer_endpoints
from .gsm8k import gsm8k_questions as gsm8k_questions
from .gsm8k import read_golds as read_golds
from .metrics import SHOWN as SHOWN
from .metrics import arithmetic_metrics as arithmetic_metrics
from .metrics import decoding_speed as decoding_speed
from .metrics import gsm8k_metrics as gsm8k_metrics
from .metrics import probe_verdicts as probe_verdicts
from .metrics import problem_keys as problem_keys
from .metrics import story_metrics as story_metrics
from .preflight import refuse_broken_weights as refuse_broken_weights
from .preflight import refuse_long_questions as refuse_long_questions
from .probes import TEMPLATES as TEMPLATES
from .probes import probes as probes
from .responses import Answers as Answers
from .responses import Question as Question
from .responses import answer_questions as answer_questions
from .responses import item_of as item_of
from .stories import STORIES as STORIES
from .verification import OlderError as OlderError
from .verification import verify_data as verify_data
from .verification import verify_results as verify_results
from .verification import verify_tokens as verify_tokens

__all__ = [
    "SHOWN",
    "STORIES",
    "TEMPLATES",
    "Answers",
    "ChatSession",
    "EvaluationRun",
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
    "names_of",
    "parse_evaluation",
    "probe_questions",
    "probe_verdicts",
    "probes",
    "probes_fingerprint",
    "problem_keys",
    "read_golds",
    "read_response",
    "refuse_broken_weights",
    "refuse_long_questions",
    "refuse_other_data_treatment",
    "resolved_rationale_seed",
    "story_metrics",
    "table_scores",
    "verify_data",
    "verify_results",
    "verify_tokens",
]
