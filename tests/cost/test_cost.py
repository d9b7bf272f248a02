"""Parameter and multiply-accumulate counts against sums done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from afdcd_hf import AfDcdConfig, AfDcdForSemanticSegmentation
from afdcd_hf.cost import count_macs, count_macs_at, count_parameters


class SmallNet(nn.Module):
    """Plain, grouped and strided, depth-wise, and 1x1 convolutions, then a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.pointwise = nn.Conv2d(16, 5, 1)
        self.linear = nn.Linear(5, 2)
        self.training_only = nn.Conv2d(8, 100, 3)
        self.calls: list[tuple[tuple[int, ...], torch.dtype, bool]] = []

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.calls.append((tuple(pixel_values.shape), pixel_values.dtype, torch.is_grad_enabled()))
        first = self.norm(self.plain(pixel_values)).relu()
        if self.training:
            self.training_only(first)
        last = self.pointwise(self.depthwise(self.grouped(first)))
        return self.linear(last.mean((2, 3)))


# On 6 x 10 pixels; the strided convolution leaves 3 x 5.
MACS = {
    "plain": 6 * 10 * 8 * 3 * 9,
    "grouped": 3 * 5 * 16 * (8 // 4) * 9,
    "depthwise": 3 * 5 * 16 * 1 * 9,
    "pointwise": 3 * 5 * 5 * 16,
    "linear": 5 * 2,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_macs_equal_the_sum_done_by_hand_and_the_model_stays_as_it_was(dtype):
    model = SmallNet().to(dtype).train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    assert count_macs(model, (6, 10)) == sum(MACS.values()) == 12960 + 4320 + 2160 + 1200 + 10
    assert model.calls == [((1, 3, 6, 10), dtype, False)]
    assert model.training and model.plain.training and not model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    larger = 4 * (sum(MACS.values()) - MACS["linear"]) + MACS["linear"]
    assert count_macs_at(model, [(6, 10), (12, 20)]) == [sum(MACS.values()), larger]
    assert next(model.parameters()).device.type == "cpu"
    with pytest.raises(RuntimeError):
        count_macs(model, (6, 10), channels=7)
    assert model.training and model.plain.training and not model.norm.training


class Attention(nn.Linear):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = pixel_values.flatten(2).mT[:, None]  # (1, 1, pixels, channels)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


class Up(nn.ConvTranspose2d):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_as_its_two_matrix_products_and_a_transposed_convolution_each_input_pixel_once(device):
    pairs = (6 * 10) ** 2  # of queries and keys, of weights and values
    assert count_macs(Attention(1, 1).to(device), (6, 10), channels=8) == 2 * pairs * 8
    up = Up(4, 6, 2, stride=2, groups=2).to(device)
    assert count_macs(up, (5, 7), channels=4) == 5 * 7 * 4 * (6 // 2) * 4


def test_parameters_count_every_stored_tensor_once():
    convolutions = (8 * 3 * 9 + 8) + 16 * 2 * 9 + 16 * 9 + (5 * 16 + 5) + (100 * 8 * 9 + 100)
    learnt = convolutions + (5 * 2 + 2) + 2 * 8
    assert count_parameters(SmallNet()) == learnt + 2 * 8 + 1  # running mean and variance, step counter
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16


@pytest.mark.parametrize("size", [(0, 10), (512,), 512, (5.0, 5), (1, 2, 3)])
def test_a_size_that_is_no_pair_of_positive_numbers_is_refused(size):
    with pytest.raises(ValueError, match=r"size=.*: expected \(height, width\)"):
        count_macs(SmallNet(), size)


def macs_by_hooks(model, size):
    """A second count, module by module: each convolution's and linear layer's own numbers times its output pixels."""
    found = []

    def convolution(module, _, output):
        rows, columns = module.kernel_size
        taps = rows * columns * module.in_channels // module.groups
        found.append(taps * output[0].numel())

    def linear(module, _, output):
        found.append(module.in_features * output[0].numel())

    hooks = [
        module.register_forward_hook(convolution if isinstance(module, nn.Conv2d) else linear)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model.eval()(pixel_values=torch.zeros(1, 3, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(found)


@pytest.mark.parametrize(("backbone", "head"), [("resnet18", "pspnet"), ("mobilenetv2_100", "deeplabv3")])
def test_macs_of_real_networks_equal_a_count_by_module_hooks(backbone, head):
    with torch.device("meta"):
        model = AfDcdForSemanticSegmentation(AfDcdConfig(backbone=backbone, head=head, num_labels=19))
    [counted] = count_macs_at(model, [(360, 480)])
    assert counted == macs_by_hooks(model, (360, 480)) > 1e9
