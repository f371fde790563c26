from .gpu_memory import plan_run as plan_run
from .loss import summed_loss as summed_loss
from .loss import to_device as to_device
from .pretraining import SHAPES as SHAPES
from .pretraining import load_examples as load_examples
from .pretraining import new_model as new_model
from .pretraining import pretrain as pretrain
from .sft_stage import open_stage as open_stage
from .sft_stage import run_stage as run_stage
from .sft_stage import stage_summary as stage_summary
from .stage_data import test_questions as test_questions
from .stage_run import add_stage_arguments as add_stage_arguments
from .stage_run import parse_stage as parse_stage
from .step_graphs import StepGraphs as StepGraphs
from .step_graphs import planned_shapes as planned_shapes
from .step_plan import plan_steps as plan_steps
from .trainer import MicroBatches as MicroBatches
from .trainer import train as train
from .trainer import training_flops as training_flops

__all__ = [
    "SHAPES",
    "MicroBatches",
    "StepGraphs",
    "add_stage_arguments",
    "load_examples",
    "new_model",
    "open_stage",
    "parse_stage",
    "plan_run",
    "plan_steps",
    "planned_shapes",
    "pretrain",
    "run_stage",
    "stage_summary",
    "summed_loss",
    "test_questions",
    "to_device",
    "train",
    "training_flops",
]
