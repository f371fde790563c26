from .folder_checks import check_evaluation as check_evaluation
from .must_equal import find_differences as find_differences
from .pairwise import compare_runs as compare_runs
from .power import Aim as Aim
from .power import ItemNoise as ItemNoise
from .power import RunNoise as RunNoise
from .power import detectable_effect as detectable_effect
from .power import item_noise as item_noise
from .power import run_noise as run_noise
from .power import seeds_needed as seeds_needed
from .report import write_report as write_report
from .runs import ARMS as ARMS
from .runs import load_pilot as load_pilot
from .runs import load_run as load_run
from .runs import pair_runs as pair_runs
from .values import ENDPOINTS as ENDPOINTS
from .values import value_matrix as value_matrix
from .words import bounds_in_words as bounds_in_words
from .words import in_words as in_words

__all__ = [
    "ARMS",
    "ENDPOINTS",
    "Aim",
    "ItemNoise",
    "RunNoise",
    "bounds_in_words",
    "check_evaluation",
    "compare_runs",
    "detectable_effect",
    "find_differences",
    "in_words",
    "item_noise",
    "load_pilot",
    "load_run",
    "pair_runs",
    "run_noise",
    "seeds_needed",
    "value_matrix",
    "write_report",
]
