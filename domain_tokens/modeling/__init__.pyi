from .chunked_loss import summed_cross_entropy as summed_cross_entropy
from .chunked_loss import token_cross_entropy as token_cross_entropy
from .graph_recorder import GraphRecorder as GraphRecorder
from .output_layer import fp32_logits as fp32_logits
from .output_layer import logits_of as logits_of
from .packed_attention import PACKED_ATTENTION as PACKED_ATTENTION
from .packed_attention import Attend as Attend
from .packed_attention import attend_where_visible as attend_where_visible
from .packed_attention import attend_within_documents as attend_within_documents
from .packed_attention import cu_seqlens_of as cu_seqlens_of
from .packed_attention import flash_takes as flash_takes
from .packed_attention import flash_takes_heads as flash_takes_heads
from .packed_attention import flash_varlen as flash_varlen
from .packed_attention import packed_tokens as packed_tokens
from .patches import fuse_activations as fuse_activations
from .patches import plain_head as plain_head
from .patches import refuse_replaced as refuse_replaced
from .patches import replace_forward as replace_forward
from .patches import replaced_forward as replaced_forward
from .patches import restore_forward as restore_forward
from .patches import without_dropout as without_dropout
from .patches import without_head as without_head

__all__ = [
    "PACKED_ATTENTION",
    "Attend",
    "GraphRecorder",
    "attend_where_visible",
    "attend_within_documents",
    "cu_seqlens_of",
    "flash_takes",
    "flash_takes_heads",
    "flash_varlen",
    "fp32_logits",
    "fuse_activations",
    "logits_of",
    "packed_tokens",
    "plain_head",
    "refuse_replaced",
    "replace_forward",
    "replaced_forward",
    "restore_forward",
    "summed_cross_entropy",
    "token_cross_entropy",
    "without_dropout",
    "without_head",
]
