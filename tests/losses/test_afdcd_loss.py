"""AfDcdLoss, MGDLoss and the projectors: golden values, hand calculations, masks and options."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import AfDcdLoss, MGDLoss
from afdcd_hf.losses.mgd import center_mask, random_mask, restoration_error
from afdcd_hf.losses.projectors import PROJECTORS, convolve_kept, mask_aligned
from afdcd_hf.ops import channel_contrast, omni_contrast, spatial_contrast

LOGITS = torch.zeros(2, 3, 8, 8)
OMNI = {"patch_size": 2, "channel_groups": 4}
SMALL = {"feature_weight": 0.5, "contrast_weight": 2.0, "pool_size": 2, "temperature": 0.5, **OMNI}


def small_loss(teacher_channels=8, **options):
    torch.manual_seed(0)
    return AfDcdLoss(3, teacher_channels, **{**SMALL, **options})


def small_maps(teacher_channels=8, size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, count, *size, generator=generator) for count in (3, teacher_channels))
    return student.requires_grad_(), teacher


def call(loss, student_map, teacher_map):
    return loss(Activations(LOGITS, student_map), Activations(LOGITS, teacher_map))


def some_mask():
    return (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.5).float()


def test_values_and_gradients_equal_the_released_code(golden):
    golden = {name.removeprefix("citys.").replace("projetor", "projector"): golden[name] for name in golden}
    loss = AfDcdLoss(16, 32, feature_weight=1e-3, contrast_weight=1.0)
    loss.load_state_dict({name: golden[f"param.{name}"] for name in loss.state_dict()})
    student = golden["student"].clone().requires_grad_()
    terms = loss.raw_terms(student, golden["teacher"], golden["mask"])
    torch.testing.assert_close(terms["feature"], golden["fd"], rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["contrast"], golden["ctr"], rtol=1e-4, atol=0)
    (1e-3 * terms["feature"] + terms["contrast"]).backward()
    expected = {name: tensor for name, tensor in golden.items() if name.startswith("grad.")}
    actual = {f"grad.{name}": weight.grad for name, weight in loss.named_parameters()}
    assert actual.keys() == expected.keys()
    for ours, theirs in [(student.grad, golden["grad_student"]), *((actual[name], expected[name]) for name in actual)]:
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def by_hand(kind, x, weights):
    """Compute a projector's output from its weights and biases in order."""

    def conv(x, index, groups=1):
        weight, bias = weights[2 * index : 2 * index + 2]
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=groups)

    if kind == "plain":
        return conv(conv(x, 0).relu(), 1)
    if kind == "enhanced":
        shallow = conv(x, 0).relu()
        return (conv(shallow, 2) + conv(conv(shallow, 1).relu(), 3)) / 2
    if kind == "bottleneck":
        return conv(conv(conv(conv(x, 0).relu(), 1).relu(), 2).relu(), 3)
    if kind == "depthwise":
        return conv(conv(conv(conv(x, 0, groups=8), 1).relu(), 2, groups=8), 3)
    return x


@pytest.mark.parametrize(
    ("options", "contrast", "contrast_options"),
    [
        ({}, omni_contrast, OMNI),
        ({"projector": "enhanced", "contrast": "channel"}, channel_contrast, {"channel_groups": 4}),
        ({"projector": "bottleneck", "negatives": "all"}, omni_contrast, {**OMNI, "negatives": "all"}),
        ({"projector": "depthwise", "contrast": "spatial", "distance": "l2"}, spatial_contrast,
         {"patch_size": 2, "distance": "l2"}),
        ({"projector": "none", "mask_ratio": 0.0, "pool_size": None}, omni_contrast, OMNI),
    ],
)  # fmt: skip
def test_the_terms_are_composed_of_align_mask_projector_pooling_and_contrast(options, contrast, contrast_options):
    loss, (student, teacher), mask = small_loss(**options), small_maps(), some_mask()
    for layer in loss.modules():  # a projector may start as the identity
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    aligned = F.conv2d(student, loss.align.weight, loss.align.bias)
    restored = by_hand(options.get("projector", "plain"), aligned * mask, list(loss.projector.parameters()))
    pooled = [F.max_pool2d(each, loss.pool_size or 1) for each in (restored, teacher)]
    expected = contrast(*pooled, temperature=0.5, **contrast_options)
    terms = loss.raw_terms(student, teacher, mask)
    torch.testing.assert_close(terms["feature"], (restored - teacher).square().sum() / 2)
    torch.testing.assert_close(terms["contrast"], expected)
    assert torch.equal(loss.raw_terms(student, teacher, mask.bool())["feature"], terms["feature"])
    loss.reduction = "mean"
    terms = loss.raw_terms(student, teacher, mask)
    torch.testing.assert_close(terms["feature"], F.mse_loss(restored, teacher))
    torch.testing.assert_close(terms["contrast"], expected / contrast_options.get("channel_groups", 1))


def test_the_random_mask_keeps_its_share_hides_whole_positions_and_follows_the_seed():
    torch.manual_seed(0)
    mask, other = (random_mask(torch.zeros(4, 5, 64, 64), mask_ratio=0.75) for _ in range(2))
    assert mask.shape == (4, 1, 64, 64) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(0.25, abs=0.015)  # 4 standard deviations: 0.0135
    assert not torch.equal(mask[0], mask[1]) and not torch.equal(mask, other)
    loss, (student, teacher) = small_loss(), small_maps()
    torch.manual_seed(3)
    drawn = loss.raw_terms(student, teacher)["feature"]
    torch.manual_seed(3)
    assert torch.equal(loss.raw_terms(student, teacher, random_mask(student, 0.75))["feature"], drawn)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_a_mask_ratio_of_0_draws_nothing_and_equals_a_mask_of_ones(projector):
    loss, (student, teacher) = small_loss(mask_ratio=0.0, projector=projector), small_maps()
    before, ones = torch.get_rng_state(), torch.ones_like(student[:, :1])
    assert loss.raw_terms(student, teacher) == loss.raw_terms(student, teacher, ones)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_center_mask_hides_the_middle_third():
    expected = torch.ones(2, 1, 5, 7)
    expected[:, :, 1:3, 2:4] = 0  # rows 1 to 3, columns 2 to 4, ends excluded
    assert torch.equal(center_mask(torch.zeros(2, 3, 5, 7)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_weight": "2e-6"}, "feature_weight='2e-6' is text.*2.0e-6"),
        ({"negatives": "all", "contrast": "spatial"}, "negatives='all' has no meaning for contrast='spatial'"),
        ({"channel_groups": 1}, "no negatives"),
        ({"contrast": "spatial", "patch_size": 1}, "no negatives"),
        ({"teacher_channels": 2040, "channel_groups": 16}, "does not divide teacher_channels=2040; .* 12, 15 or 17"),
        ({"teacher_channels": 7, "channel_groups": 4}, "does not divide teacher_channels=7; use a divisor such as 7"),
        ({"teacher_channels": 18, "channel_groups": 2, "projector": "bottleneck"}, "'bottleneck' .*=18 is not a"),
        ({"projector": "none"}, "'none' restores nothing, but mask_ratio=0.75 hides positions: set mask_ratio=0"),
        ({"projector": "none", "mask": "center", "mask_ratio": 0.0}, "but mask='center' hides positions"),
    ],
)
def test_bad_options_are_explained_when_the_loss_is_built(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small_loss(**options)


def test_groups_need_not_divide_channels_if_no_groups_are_contrasted():
    small_loss(teacher_channels=7, contrast="spatial")
    small_loss(teacher_channels=7, contrast_weight=0)


def test_maps_too_small_for_a_patch_name_the_size_needed_and_mismatched_masks_are_rejected():
    with pytest.raises(ValueError, match="map is 8x8; after pooling by 4 that is 2x2.*at least 16x16.*128x128"):
        call(small_loss(pool_size=4, patch_size=4), *small_maps())
    channel = small_loss(pool_size=4, contrast="channel")
    assert torch.isfinite(call(channel, *small_maps(size=(4, 4)))["contrast"])
    with pytest.raises(ValueError, match="map is 3x8; after pooling by 4 that is 0x2.*at least 4x4"):
        call(channel, *small_maps(size=(3, 8)))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 8, 8\); expected \(2, 1, 8, 8\)"):
        small_loss().raw_terms(*small_maps(), some_mask()[:, 0])


# MGD


def test_one_pixel_per_map_by_hand():
    # align is the identity, nothing is hidden; both convolutions only double, at their centre
    loss = MGDLoss(1, 1, weight=0.5, mask_ratio=0.0)
    for convolution in (loss.projector[0], loss.projector[2]):
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        convolution.weight.data[0, 0, 1, 1] = 2.0
    student = torch.tensor([3.0, -1.0]).view(2, 1, 1, 1)  # restored: 12 and, after the ReLU, 0
    teacher = torch.tensor([10.0, 4.0]).view(2, 1, 1, 1)
    assert call(loss, student, teacher)["mgd"].item() == pytest.approx(0.5 * (2**2 + 4**2) / 2)


def test_mgd_is_af_dcds_feature_term_to_the_bit():
    student, teacher = small_maps()
    ours, theirs = MGDLoss(3, 8, weight=2e-5), small_loss(feature_weight=2e-5, contrast_weight=0.0)
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(0)
    term = call(ours, student, teacher)["mgd"]
    torch.manual_seed(0)
    assert torch.equal(call(theirs, student, teacher)["feature"], term)


def test_the_teachers_map_is_freed_before_the_backward_pass():
    restored, target = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3)
    gone = weakref.ref(target)
    error = restoration_error(restored, target)
    del target
    assert gone() is None
    error.backward()
    assert restored.grad is not None


# Projectors


@pytest.mark.parametrize(
    ("kind", "size", "names"),
    [
        ("plain", 75_501_568, "0 2"),
        ("enhanced", 2 * 75_501_568, "first.0 second.0 restore_first restore_second"),
        ("bottleneck", 6_819_328, "0 2 4 6"),  # 2·2048·512 + 2·9·512² + 3·512 + 2048
        ("depthwise", 8_433_664, "0 1 3 4"),  # 2·(2048² + 9·2048 + 2·2048)
        ("none", 0, ""),
    ],
)
def test_the_projectors_have_the_documented_sizes_and_keep_the_names_of_their_weights(kind, size, names):
    with torch.device("meta"):
        weights = PROJECTORS[kind](2048).state_dict()
    assert sum(weight.numel() for weight in weights.values()) == size
    assert [name for name in weights if "weight" in name] == [f"{name}.weight" for name in names.split()]


def test_the_depthwise_projector_starts_as_the_identity_on_a_map_after_a_relu():
    feature_map = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    projector = PROJECTORS["depthwise"](6)
    assert torch.equal(projector(feature_map), feature_map.relu())
    projector(feature_map).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in projector.parameters())


@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 2, 1, 6), (3, 1, 5, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("kept", ["a quarter", "corners", "none", "all"])
def test_a_convolution_of_kept_positions_equals_the_dense_one_with_its_gradients(shape, kept):
    batch, channels, height, width = shape
    mask = torch.zeros(batch, 1, height, width, dtype=torch.float64)
    if kept == "a quarter":
        mask.view(-1)[torch.randperm(mask.numel())[: -(-mask.numel() // 4)]] = 1
    elif kept == "corners":
        mask[..., :: max(height - 1, 1), :: max(width - 1, 1)] = 1
    elif kept == "all":
        mask += 1
    align = nn.Conv2d(channels, 3, 1, dtype=torch.float64)
    convolution = nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float64)
    feature_map = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    upstream, leaves = (
        torch.randn(batch, 4, height, width),
        (feature_map, *align.parameters(), *convolution.parameters()),
    )
    results = []
    dense = convolution(align(feature_map) * mask)
    for convolved in (dense, convolve_kept(convolution, mask_aligned(align, feature_map, mask), mask)):
        results.append((convolved, *torch.autograd.grad((convolved * upstream).sum(), leaves)))
    torch.testing.assert_close(results[1], results[0])
