"""The networks that turn one picture into another: Zhu et al. 2017 (arXiv 1703.10593), section 7.2, and Isola et al."""

from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions of 3 x 3 whose result is added to the features [B, C, H, W].

    Between them, while it learns, a share ``dropout`` of the features is 0.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU()),
            *[nn.Dropout(dropout)] * (dropout > 0),
            *(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)),
        )

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = features + self.layers(features)
        return out


def residual_generator(width: int, blocks: int, dropout: float = 0.0) -> nn.Sequential:
    """Pictures [B, 1, H, W] -> pictures in (-1, 1), after Johnson et al. 2016 (arXiv 1603.08155): "ResNet-9" with 9.

    H and W are multiples of 4; ``width`` is that of the features at full size.
    """
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(1, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
    for features in (width, 2 * width):
        layers += [nn.Conv2d(features, 2 * features, 3, 2, 1), nn.InstanceNorm2d(2 * features), nn.ReLU()]
    layers += [Residual(4 * width, dropout) for _ in range(blocks)]
    for features in (4 * width, 2 * width):
        enlarging = nn.ConvTranspose2d(features, features // 2, 3, 2, 1, output_padding=1)
        layers += [enlarging, nn.InstanceNorm2d(features // 2), nn.ReLU()]
    network = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7), nn.Tanh())
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return network


class PatchCritic(nn.Module):
    """Pictures [B, channels, H, W] -> a score of each patch of 70 x 70 pixels, [B, 1, h, w]: "PatchGAN 70"."""

    def __init__(self, width: int, channels: int = 1) -> None:
        super().__init__()
        self.network = PatchDiscriminator(2, width, channels, num_layers_d=3, norm="INSTANCE", bias=True)

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.network(pictures)[-1]
        return scores
