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


def test_macs_equal_the_sum_done_by_hand():
    assert count_macs(SmallNet(), (6, 10)) == sum(MACS.values()) == 12960 + 4320 + 2160 + 1200 + 10


def test_macs_grow_with_the_image_and_keep_height_and_width_apart():
    model = SmallNet()
    assert count_macs(model, (12, 20)) == 4 * (sum(MACS.values()) - MACS["linear"]) + MACS["linear"]
    assert model.calls[-1][0] == (1, 3, 12, 20)


def test_a_transposed_convolution_counts_each_input_pixel_once():
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.up(pixel_values)

    assert count_macs(Up(), (5, 7), channels=4) == 5 * 7 * 4 * (6 // 2) * 4


def test_counting_runs_without_gradients_and_leaves_the_model_as_it_was():
    model = SmallNet().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    count_macs(model, (6, 10))
    assert model.calls == [((1, 3, 6, 10), torch.float32, False)]
    assert model.training and model.plain.training and not model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_modes_come_back_even_if_the_forward_pass_fails():
    model = SmallNet().train()
    with pytest.raises(RuntimeError):
        count_macs(model, (6, 10), channels=7)
    assert model.training and model.norm.training


def test_a_half_precision_model_is_called_in_its_own_dtype():
    model = SmallNet().to(torch.bfloat16)
    assert count_macs(model, (6, 10)) == sum(MACS.values())
    assert model.calls[0][1] == torch.bfloat16


def test_parameters_count_every_stored_tensor():
    convolutions = (8 * 3 * 9 + 8) + 16 * 2 * 9 + 16 * 9 + (5 * 16 + 5) + (100 * 8 * 9 + 100)
    linear = 5 * 2 + 2
    learnt = convolutions + linear + 2 * 8
    assert count_parameters(SmallNet()) == learnt + 2 * 8 + 1  # running mean and variance, step counter
    assert count_parameters(SmallNet(), trainable_only=True) == learnt


def test_frozen_parameters_are_stored_but_not_trainable():
    model = SmallNet()
    stored, trainable = count_parameters(model), count_parameters(model, trainable_only=True)
    model.training_only.requires_grad_(False)
    assert count_parameters(model) == stored
    assert count_parameters(model, trainable_only=True) == trainable - 7300


def test_a_shared_tensor_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16
    assert count_parameters(model, trainable_only=True) == 16


@pytest.mark.parametrize("size", [(0, 10), (512,), 512, (5.0, 5), (1, 2, 3)])
def test_a_size_that_is_no_pair_of_positive_numbers_is_refused(size):
    with pytest.raises(ValueError, match=r"size=\(height, width\)"):
        count_macs(SmallNet(), size)


def test_fused_attention_counts_as_its_two_matrix_products():
    class Attention(nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            tokens = pixel_values.flatten(2).mT[:, None]  # (1, 1, pixels, channels)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    by_hand = 2 * (6 * 10) ** 2 * 8  # queries times keys, weights times values
    assert count_macs(Attention(), (6, 10), channels=8) == by_hand
    assert count_macs(Attention().to("meta"), (6, 10), channels=8) == by_hand


# Real networks against a count of our own


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


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet", "fcn"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_100"])
def test_macs_of_real_networks_equal_a_count_by_module_hooks(backbone, head):
    with torch.device("meta"):
        model = AfDcdForSemanticSegmentation(AfDcdConfig(backbone=backbone, head=head, num_labels=19))
    sizes = [(512, 1024), (360, 480)]
    assert count_macs_at(model, sizes) == [macs_by_hooks(model, size) for size in sizes]
    assert min(count_macs_at(model, sizes)) > 1e9


def test_counting_from_shapes_gives_the_same_and_leaves_the_model_where_it_is():
    model = SmallNet()
    assert count_macs_at(model, [(6, 10), (12, 20)]) == [count_macs(model, (6, 10)), count_macs(model, (12, 20))]
    assert next(model.parameters()).device.type == "cpu"
