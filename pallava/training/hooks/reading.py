"""Whether the connector still reads the tiles: how widely its cross-attention looks."""

from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from pallava.model.attention import attention_entropy
from pallava.model.connectors import ScaleInvariantConnector
from pallava.training.model import unwrap


@HOOKS.register_module()
class TileReadingHook(Hook):
    """Logs `tile_entropy`, that of the connector's cross-attention on the first image of a batch (`attention_entropy`).

    It is 1 where each token of the overview reads all tile tokens alike, as a new connector does, and 0 where it reads
    one. At either end, what an image shows hardly changes where the connector looks.

    Args:
        interval: Iterations from one value to the next; 0 logs none.
    """

    def __init__(self, interval: int = 50) -> None:
        self._interval = interval
        self._handle: Any = None
        self._read: tuple[Tensor, Tensor] | None = None  # what the connector was given

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Look at what the connector is given, if it is the time and it has cross-attention."""
        connector = unwrap(runner.model).network.connector
        reads = isinstance(connector, ScaleInvariantConnector) and connector.config.reads_tiles
        if reads and is_main_process() and self.every_n_train_iters(runner, self._interval):
            self._handle = connector.register_forward_pre_hook(self._keep)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Log the entropy of what it read."""
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        if self._read is not None:
            entropy = attention_entropy(unwrap(runner.model).network.connector, *self._read)
            runner.message_hub.update_scalar("train/tile_entropy", entropy.mean().item())
            self._read = None

    def _keep(self, module: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        overview, tiles, mask = inputs
        self._read = overview[:1].detach(), tiles[:1, : int(mask[0].sum())].detach()
