"""A network that finds the structures of masks, trained on real slices or phantoms to read what models draw."""

from collections.abc import Iterator, Sequence

import torch
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.networks.utils import one_hot
from rich import get_console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from serving.progress import NowAndThen
from training.memory import keep_freed_memory

BATCH = 16
LEARNING_RATE = 2e-3


def train_segmenter(dataset: Sequence[dict[str, Tensor]], classes: int, epochs: int, seed: int = 0) -> nn.Module:
    """A residual UNet: images [B, 1, H, W] in [-1, 1] -> logits [B, classes, H, W]; the same for the same seed."""
    torch.manual_seed(seed)
    keep_freed_memory()
    network = UNet(2, 1, classes, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2, norm="BATCH")
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        dataset,  # type: ignore[arg-type] # a sequence is a data set, though PyTorch's types say not
        BATCH,
        shuffle=True,
        drop_last=len(dataset) > BATCH,
    )
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * len(loader))
    steps, line, piped = epochs * len(loader), NowAndThen(), not get_console().is_terminal
    batches = track(_repeated(loader, epochs), "training a segmenter", total=steps, transient=True, disable=piped)
    for step, batch in enumerate(batches):
        if piped:
            line(f"training a segmenter: step {step} of {steps}")
        optimizer.zero_grad()
        criterion(network(batch["image"]), batch["mask"]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _repeated(loader: DataLoader[dict[str, Tensor]], epochs: int) -> Iterator[dict[str, Tensor]]:
    for _ in range(epochs):
        yield from loader


@torch.no_grad()
def dice(network: nn.Module, classes: int, images: Tensor, masks: Tensor) -> list[float]:
    """Dice of each class but the background: the mean over images [N, 1, H, W] whose masks, uint8 alike, have it."""
    found = torch.cat([network(part).argmax(1, keepdim=True) for part in images.split(BATCH)])
    metric = DiceMetric(include_background=False, reduction="mean_batch")
    metric(one_hot(found, classes), one_hot(masks.long(), classes))
    mean = metric.aggregate()
    assert isinstance(mean, Tensor)
    return mean.tolist()
