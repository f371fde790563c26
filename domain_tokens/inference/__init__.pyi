from .cpu.packed_weights import prepack_ as prepack_
from .decoder import Response as Response
from .decoder import generate as generate
from .forced_tokens import Calculator as Calculator
from .forced_tokens import Constraints as Constraints
from .log_probs import continuation_log_probs as continuation_log_probs
from .noise import SAMPLER_VERSION as SAMPLER_VERSION
from .sampling import GREEDY as GREEDY
from .sampling import Sampling as Sampling

__all__ = [
    "GREEDY",
    "SAMPLER_VERSION",
    "Calculator",
    "Constraints",
    "Response",
    "Sampling",
    "continuation_log_probs",
    "generate",
    "prepack_",
]
