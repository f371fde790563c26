from .arms import SEED_FLAGS as SEED_FLAGS
from .arms import find_arm_differences as find_arm_differences
from .arms import load_arms as load_arms
from .arms import refuse_other_arm as refuse_other_arm
from .arms_report import write_arms_report as write_arms_report
from .contrasts import compare_arms as compare_arms
from .folder_checks import check_evaluation as check_evaluation
from .half_contrast import half_means as half_means
from .half_contrast import randomisation_p as randomisation_p
from .half_contrast import redrawn_halves as redrawn_halves
from .half_contrast import signs_of as signs_of
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
from .tables import print_arms as print_arms
from .tables import print_report as print_report
from .values import ENDPOINTS as ENDPOINTS
from .values import value_matrix as value_matrix

__all__ = [
    "ARMS",
    "ENDPOINTS",
    "SEED_FLAGS",
    "Aim",
    "ItemNoise",
    "RunNoise",
    "check_evaluation",
    "compare_arms",
    "compare_runs",
    "detectable_effect",
    "find_arm_differences",
    "find_differences",
    "half_means",
    "item_noise",
    "load_arms",
    "load_pilot",
    "load_run",
    "pair_runs",
    "print_arms",
    "print_report",
    "randomisation_p",
    "redrawn_halves",
    "refuse_other_arm",
    "run_noise",
    "seeds_needed",
    "signs_of",
    "value_matrix",
    "write_arms_report",
    "write_report",
]
