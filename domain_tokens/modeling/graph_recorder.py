"""Records what runs on a GPU as CUDA graphs, which are launched faster than their kernels."""

from collections.abc import Callable
from typing import Any

import torch


class GraphRecorder:
    """Records on CUDA; all graphs share their memory, as one is replayed after another."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._kept: list[Any] = []

    def __call__(self, body: Callable[[], None], *, keep: Any) -> Callable[[], None]:
        """Run the body once on another stream, where libraries prepare themselves, then record it.

        keep: what the body reads and nothing else keeps alive. Returns the replay, which does once
        more what the body did with the tensors as they are then.
        """
        self._kept.append(keep)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            body()
        torch.cuda.empty_cache()  # what the run on the other stream had is of no more use
        return graph.replay
