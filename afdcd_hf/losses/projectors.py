"""Networks that restore the teacher's map from the masked student map; they train beside the student, then go."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def _conv3x3(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1)


def plain_projector(channels: int) -> nn.Sequential:
    """conv3×3 – ReLU – conv3×3 on `(B, channels, h, w)`: 18·channels² weights (75.5 million at 2048)."""
    return nn.Sequential(_conv3x3(channels), nn.ReLU(inplace=True), _conv3x3(channels))


class EnhancedProjector(nn.Module):
    """Two depths restored separately and averaged; twice the weights of the plain projector.

    x1 = ReLU(conv3×3(x)), x2 = ReLU(conv3×3(x1)); the result is the mean of conv3×3(x1) and conv3×3(x2).

    Args:
        channels: of the input, the output and everything between.

    Shape:
        `(B, channels, h, w)` to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_conv3x3(channels), nn.ReLU(inplace=True))
        self.second = nn.Sequential(_conv3x3(channels), nn.ReLU(inplace=True))
        self.restore_first = _conv3x3(channels)
        self.restore_second = _conv3x3(channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        shallow = self.first(feature_map)
        deep = self.second(shallow)
        return (self.restore_first(shallow) + self.restore_second(deep)) / 2


PROJECTORS: dict[str, Callable[[int], nn.Module]] = {"plain": plain_projector, "enhanced": EnhancedProjector}
