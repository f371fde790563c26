from .layout import DESIGNS as DESIGNS
from .layout import EXTRA as EXTRA
from .layout import PROFILES as PROFILES
from .layout import Options as Options
from .plan import Experiment as Experiment
from .progress import Planned as Planned
from .progress import planned as planned
from .run_table import RunSummary as RunSummary
from .run_table import plans_in_words as plans_in_words
from .run_table import run_rows as run_rows
from .runner import chosen_lineages as chosen_lineages
from .runner import compare_arms as compare_arms
from .runner import run_apart as run_apart
from .runner import run_here as run_here
from .settings import expected_time as expected_time
from .settings import refuse_bad_overrides as refuse_bad_overrides
from .side_by_side import end_with_parent as end_with_parent
from .stages import CONTROLS as CONTROLS
from .stages import Stage as Stage

__all__ = [
    "CONTROLS",
    "DESIGNS",
    "EXTRA",
    "PROFILES",
    "Experiment",
    "Options",
    "Planned",
    "RunSummary",
    "Stage",
    "chosen_lineages",
    "compare_arms",
    "end_with_parent",
    "expected_time",
    "planned",
    "plans_in_words",
    "refuse_bad_overrides",
    "run_apart",
    "run_here",
    "run_rows",
]
