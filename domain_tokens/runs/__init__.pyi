from .cli import CONDITIONS as CONDITIONS
from .cli import COUNT as COUNT
from .cli import NO_MEMORY as NO_MEMORY
from .cli import ROOT as ROOT
from .cli import SEED as SEED
from .cli import Number as Number
from .cli import Parser as Parser
from .cli import add_config_arguments as add_config_arguments
from .cli import add_evaluation_arguments as add_evaluation_arguments
from .cli import add_forbidding_argument as add_forbidding_argument
from .cli import add_output_arguments as add_output_arguments
from .cli import in_repository as in_repository
from .cli import is_unicode as is_unicode
from .cli import overrides_of as overrides_of
from .cli import run_script as run_script
from .config import AnalysisPlan as AnalysisPlan
from .config import ArmName as ArmName
from .config import ArmsPlan as ArmsPlan
from .config import ContrastSection as ContrastSection
from .config import DataSection as DataSection
from .config import GSM8KEvalConfig as GSM8KEvalConfig
from .config import GSM8KSection as GSM8KSection
from .config import ModelSection as ModelSection
from .config import PretrainingConfig as PretrainingConfig
from .config import ProbeEvalConfig as ProbeEvalConfig
from .config import ProbeSection as ProbeSection
from .config import Rationale as Rationale
from .config import SFTConfig as SFTConfig
from .config import TrackingSection as TrackingSection
from .config import TrainedRows as TrainedRows
from .config import TrainingSection as TrainingSection
from .config import as_written_today as as_written_today
from .config import load_config as load_config
from .config import load_plan as load_plan
from .config import with_later_keys as with_later_keys
from .console import highlighted as highlighted
from .console import highlighted_text as highlighted_text
from .console import print_columns as print_columns
from .console import shown_example as shown_example
from .device import Device as Device
from .device import choose_device as choose_device
from .device import hardware_line as hardware_line
from .device import peak_flops as peak_flops
from .device import peak_memory_bytes as peak_memory_bytes
from .device import reset_peak_memory as reset_peak_memory
from .distributed import barrier as barrier
from .distributed import gather_dict as gather_dict
from .distributed import init_distributed as init_distributed
from .distributed import is_main_process as is_main_process
from .distributed import process_rank as process_rank
from .distributed import share_of as share_of
from .distributed import world_size as world_size
from .files import SEAL as SEAL
from .files import check_seal as check_seal
from .files import file_digest as file_digest
from .files import hash_digests as hash_digests
from .files import hash_files as hash_files
from .files import hash_json as hash_json
from .files import read_json as read_json
from .files import read_lines as read_lines
from .files import read_sealed as read_sealed
from .files import sealed as sealed
from .files import umask as umask
from .files import write_json as write_json
from .files import write_text as write_text
from .memory import refuse_without_memory as refuse_without_memory
from .older_names import key_today as key_today
from .older_names import named_today as named_today
from .output_folder import UNFINISHED_MARKER as UNFINISHED_MARKER
from .output_folder import ExistingOutput as ExistingOutput
from .output_folder import State as State
from .output_folder import Step as Step
from .output_folder import Workspace as Workspace
from .output_folder import decide as decide
from .output_folder import lock_output as lock_output
from .output_folder import make_folder as make_folder
from .output_folder import open_workspace as open_workspace
from .output_folder import other_code as other_code
from .output_folder import refuse_changed as refuse_changed
from .output_folder import refuse_file as refuse_file
from .preflight import refuse_full_disk as refuse_full_disk
from .preflight import refuse_not_json as refuse_not_json
from .preflight import refuse_unwritable as refuse_unwritable
from .preflight import trial_folder as trial_folder
from .provenance import CARD_NAME as CARD_NAME
from .provenance import code_identity as code_identity
from .provenance import format_versions as format_versions
from .provenance import run_environment as run_environment
from .results.bases import Manifest as Manifest
from .results.card import AFTER_TRAINING as AFTER_TRAINING
from .results.card import StageCard as StageCard
from .results.card import base_models as base_models
from .results.card import card_model as card_model
from .results.comparison import Comparison as Comparison
from .results.comparison import Study as Study
from .results.evaluation import EVALUATION_CARDS as EVALUATION_CARDS
from .results.evaluation import EVALUATION_LINES as EVALUATION_LINES
from .results.evaluation import EVALUATION_RESULTS as EVALUATION_RESULTS
from .results.files import file_model as file_model
from .results.record import check_record as check_record
from .results.record import check_records as check_records
from .results.record import lacked_keys as lacked_keys
from .results.record import require_record as require_record
from .results.record import write_record as write_record
from .results.training import MEASURED as MEASURED
from .results.training import Decontaminated as Decontaminated
from .results.training import StageResults as StageResults
from .results.training import TrainLogLine as TrainLogLine
from .source_code import PACKAGE as PACKAGE
from .source_code import code_hash as code_hash
from .threads import job_cpus as job_cpus
from .threads import settle_threads as settle_threads
from .threads import usable_cpus as usable_cpus

__all__ = [
    "AFTER_TRAINING",
    "CARD_NAME",
    "CONDITIONS",
    "COUNT",
    "EVALUATION_CARDS",
    "EVALUATION_LINES",
    "EVALUATION_RESULTS",
    "MEASURED",
    "NO_MEMORY",
    "PACKAGE",
    "ROOT",
    "SEAL",
    "SEED",
    "UNFINISHED_MARKER",
    "AnalysisPlan",
    "ArmName",
    "ArmsPlan",
    "Comparison",
    "ContrastSection",
    "DataSection",
    "Decontaminated",
    "Device",
    "ExistingOutput",
    "GSM8KEvalConfig",
    "GSM8KSection",
    "Manifest",
    "ModelSection",
    "Number",
    "Parser",
    "PretrainingConfig",
    "ProbeEvalConfig",
    "ProbeSection",
    "Rationale",
    "SFTConfig",
    "StageCard",
    "StageResults",
    "State",
    "Step",
    "Study",
    "TrackingSection",
    "TrainLogLine",
    "TrainedRows",
    "TrainingSection",
    "Workspace",
    "add_config_arguments",
    "add_evaluation_arguments",
    "add_forbidding_argument",
    "add_output_arguments",
    "as_written_today",
    "barrier",
    "base_models",
    "card_model",
    "check_record",
    "check_records",
    "check_seal",
    "choose_device",
    "code_hash",
    "code_identity",
    "decide",
    "file_digest",
    "file_model",
    "format_versions",
    "gather_dict",
    "hardware_line",
    "hash_digests",
    "hash_files",
    "hash_json",
    "highlighted",
    "highlighted_text",
    "in_repository",
    "init_distributed",
    "is_main_process",
    "is_unicode",
    "job_cpus",
    "key_today",
    "lacked_keys",
    "load_config",
    "load_plan",
    "lock_output",
    "make_folder",
    "named_today",
    "open_workspace",
    "other_code",
    "overrides_of",
    "peak_flops",
    "peak_memory_bytes",
    "print_columns",
    "process_rank",
    "read_json",
    "read_lines",
    "read_sealed",
    "refuse_changed",
    "refuse_file",
    "refuse_full_disk",
    "refuse_not_json",
    "refuse_unwritable",
    "refuse_without_memory",
    "require_record",
    "reset_peak_memory",
    "run_environment",
    "run_script",
    "sealed",
    "settle_threads",
    "share_of",
    "shown_example",
    "trial_folder",
    "umask",
    "usable_cpus",
    "with_later_keys",
    "world_size",
    "write_json",
    "write_record",
    "write_text",
]
