"""What every training does, whatever its task: a step, its checks, the optimizer, the score of the validation cases.

Invariant: the network is the only part with weights, so that a state of the run is a state of `network`, whatever
Lightning wraps around it. Nothing that is not finite enters the weights or a saved state: the run stops before, on all
ranks alike, and names the cases. However many processes share a batch, loss and score are those of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

from imaging.config import Fit
from imaging.errors import TrainingDiverged
from imaging.networks import weights_of
from imaging.samples import Sample
from imaging.tasks.ranks import gathered
from imaging.tasks.schedule import adamw
from imaging.transfer import adapt, merge
from imaging.transforms import IMAGE

_Kept = TypeVar("_Kept")

# By the number of axes of an image, batch and channels included.
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class FittingTask(lightning.LightningModule, ABC, Generic[_Kept]):
    """One run of any task.

    A task gives the loss of a batch, keeps of each validation case what its score is made from, and makes the score.

    Parameters
    ----------
    network
        What is fitted; frozen and adapted here as the settings say.
    settings
        How.
    train_names
        Names of the training cases by their index, for messages.
    """

    monitor: ClassVar[str]
    """The score that decides which state is the best; more is better."""

    def __init__(self, network: torch.nn.Module, settings: Fit, train_names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._held = adapt(network, settings)
        self._layouts = _CHANNELS_LAST if settings.channels_last else {}
        layout = self._layouts.get(max(parameter.ndim for parameter in network.parameters()))
        if layout is not None:
            network.to(memory_format=layout)  # type: ignore[call-overload]
        self._settings = settings
        self._train_names = train_names
        self._step_cases: list[int] = []
        self._kept: list[tuple[int, _Kept]] = []
        self.train()

    @abstractmethod
    def loss(self, said: Any, batch: Sample) -> torch.Tensor:
        """Loss of the batch of all ranks together, the same on each; see `imaging.tasks.losses`."""

    @abstractmethod
    def scores(self, kept: list[_Kept]) -> dict[str, float]:
        """Scores by their names in the log, `monitor` among them.

        Parameters
        ----------
        kept
            Of each validation case, in their order, what `keep` was given.
        """

    def train(self, mode: bool = True) -> Self:
        """Switch between training and not, but for what keeps its running statistics."""
        super().train(mode)
        for module in self._held:
            module.eval()
        return self

    def setup(self, stage: str) -> None:
        """Compile the network in its place, so that its weights keep their names."""
        if stage == "fit" and self._settings.compile:
            self.network.compile()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """What the network says of a batch of images."""
        layout = self._layouts.get(image.ndim, torch.contiguous_format)
        logits: torch.Tensor = self.network(image.contiguous(memory_format=layout))
        return logits

    def answer(self, batch: Sample) -> Any:
        """What the network says of a batch."""
        return self(batch[IMAGE])

    def published(self) -> dict[str, torch.Tensor]:
        """The weights that a checkpoint holds; what was trained beside a matrix is added to it."""
        merge(self.network)
        return weights_of(self.network)

    def training_step(self, batch: Sample, batch_idx: int) -> torch.Tensor:
        """Loss of one batch.

        Raises
        ------
        TrainingDiverged
            If the loss is not finite; the cases of the batch are named.
        """
        cases = batch["index"].tolist()
        # The gradient of a step is that of all batches since the last one.
        self._step_cases = [*self._step_cases, *cases] if batch_idx % self.trainer.accumulate_grad_batches else cases
        loss = self.loss(self.answer(batch), batch)
        if not torch.isfinite(loss):
            self._diverged(cases, f"the loss is {loss.item()}")
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(cases), sync_dist=True)
        return loss * self._share(batch_idx)

    def _share(self, batch_idx: int) -> float:
        """What makes the gradient of a step the mean over its batches: the last one of an epoch may have fewer of them.

        Lightning divides each loss by `accumulate`, however many batches are left.
        """
        every, batches = self.trainer.accumulate_grad_batches, int(self.trainer.num_training_batches)
        left = batches % every
        return every / left if left and batch_idx >= batches - left else 1.0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient to the norm that the config names.

        Raises
        ------
        TrainingDiverged
            If the gradient is not finite. With 16-mixed that is in order: the scaler leaves the step out.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._settings.gradient_clip)
        if self._settings.precision != "16-mixed" and not torch.isfinite(norm):
            self._diverged(self._step_cases, f"the gradient's norm is {norm.item()}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Look the state over before it takes the place of a good one.

        Raises
        ------
        TrainingDiverged
            If a weight is not finite.
        """
        for key in ("state_dict", "current_model_state"):
            for name, tensor in checkpoint.get(key, {}).items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise TrainingDiverged(f"step {self.global_step}", seen=f"weights of {name} are not finite")

    def _diverged(self, cases: list[int], seen: str) -> None:
        # The loss and the gradient are the same on all ranks, so that all of them come here together.
        names = ", ".join(self._train_names[index] for index in gathered(cases))
        raise TrainingDiverged(f"step {self.global_step}, cases {names}", seen=seen)

    def keep(self, index: int, found: _Kept) -> None:
        """Keep what a validation case's score is made from, until all ranks have done theirs."""
        self._kept.append((index, found))

    def on_validation_epoch_end(self) -> None:
        """Log the scores over the cases of all ranks."""
        # A case that filled up a rank without one comes twice, and counts once.
        kept = dict(gathered(self._kept))
        self._kept = []
        for name, score in self.scores([kept[index] for index in sorted(kept)]).items():
            self.log(name, score, prog_bar=name == self.monitor)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, its learning rate over the run's steps as the config says."""
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        return adamw(self.network, self._settings, steps=steps)
