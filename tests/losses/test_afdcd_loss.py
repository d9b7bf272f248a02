"""AfDcdLoss and MGDLoss: golden values, hand calculations, their parts one by one, masks and options."""

from __future__ import annotations

import weakref

import paths
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import AfDcdLoss, MGDLoss, build_loss
from afdcd_hf.losses.mgd import center_mask, random_mask, restoration_error, restore
from afdcd_hf.losses.projectors import PROJECTORS
from afdcd_hf.ops import channel_contrast, omni_contrast, spatial_contrast

GOLDEN = paths.GOLDEN / "losses.safetensors"
WEIGHTS = {"feature_weight": 0.5, "contrast_weight": 2.0}
LOGITS = torch.zeros(2, 3, 8, 8)


def small_loss(student_channels=3, teacher_channels=8, **options):
    torch.manual_seed(0)
    return AfDcdLoss(
        student_channels,
        teacher_channels,
        **{**WEIGHTS, "pool_size": 2, "patch_size": 2, "channel_groups": 4, "temperature": 0.5, **options},
    )


def small_maps(student_channels=3, teacher_channels=8, size=(8, 8), batch=2):
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(batch, student_channels, *size, generator=generator)
    return student.requires_grad_(), torch.randn(batch, teacher_channels, *size, generator=generator)


def call(loss, student_map, teacher_map):
    return loss(Activations(LOGITS, student_map), Activations(LOGITS, teacher_map))


def some_mask(batch=2, size=(8, 8)):
    return (torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(2)) > 0.5).float()


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip("needs ../shared/golden")
    tensors = pytest.importorskip("safetensors.torch").load_file(GOLDEN)
    return {name.removeprefix("citys."): tensor for name, tensor in tensors.items() if name.startswith("citys.")}


def golden_parameters(golden, prefix):
    names = [name for name in golden if name.startswith(prefix)]
    return {name.removeprefix(prefix).replace("projetor", "projector"): golden[name] for name in names}


def test_values_and_gradients_equal_the_released_code(golden):
    loss = AfDcdLoss(16, 32, feature_weight=1e-3, contrast_weight=1.0)
    loss.load_state_dict(golden_parameters(golden, "param."))
    student = golden["student"].clone().requires_grad_()
    terms = loss.raw_terms(student, golden["teacher"], golden["mask"])
    torch.testing.assert_close(terms["feature"], golden["fd"], rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["contrast"], golden["ctr"], rtol=1e-4, atol=0)

    (1e-3 * terms["feature"] + terms["contrast"]).backward()
    expected = {"student": golden["grad_student"], **golden_parameters(golden, "grad.")}
    actual = {"student": student.grad, **{name: weight.grad for name, weight in loss.named_parameters()}}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        relative = (actual[name] - gradient).norm() / gradient.norm()
        assert relative < 1e-4, name


def test_the_two_terms_are_composed_of_align_mask_projector_and_pooling():
    loss = small_loss()
    student, teacher = small_maps()
    mask = some_mask()
    weights = dict(loss.named_parameters())
    restored = F.conv2d(student, weights["align.weight"], weights["align.bias"]) * mask
    restored = F.relu(F.conv2d(restored, weights["projector.0.weight"], weights["projector.0.bias"], padding=1))
    restored = F.conv2d(restored, weights["projector.2.weight"], weights["projector.2.bias"], padding=1)
    pooled = [F.max_pool2d(feature_map, 2) for feature_map in (restored, teacher)]

    terms = loss.raw_terms(student, teacher, mask)
    torch.testing.assert_close(terms["feature"], (restored - teacher).square().sum() / 2)
    expected = omni_contrast(*pooled, patch_size=2, channel_groups=4, temperature=0.5)
    torch.testing.assert_close(terms["contrast"], expected)


@pytest.mark.parametrize(
    ("options", "function", "function_options"),
    [
        ({"contrast": "channel"}, channel_contrast, {"channel_groups": 4}),
        ({"distance": "l2", "negatives": "all"}, omni_contrast, {"distance": "l2", "negatives": "all"}),
        ({"contrast": "spatial", "distance": "l2"}, spatial_contrast, {"patch_size": 2, "distance": "l2"}),
        ({"pool_size": None}, omni_contrast, {}),
    ],
)
def test_the_contrast_options_reach_the_contrast(options, function, function_options):
    loss = small_loss(8, **options)
    student, teacher = small_maps(8)
    mask = some_mask()
    pool = loss.pool_size or 1
    pooled = [F.max_pool2d(feature_map, pool) for feature_map in (loss.projector(student * mask), teacher)]
    if function is omni_contrast:
        function_options = {"patch_size": 2, "channel_groups": 4, **function_options}
    expected = function(*pooled, temperature=0.5, **function_options)
    torch.testing.assert_close(loss.raw_terms(student, teacher, mask)["contrast"], expected)


@pytest.mark.parametrize(("contrast", "anchors_per_position"), [("omni", 4), ("channel", 4), ("spatial", 1)])
def test_the_mean_reduction_divides_by_elements_and_anchors(contrast, anchors_per_position):
    student, teacher = small_maps()
    mask = some_mask()
    paper = small_loss(contrast=contrast).raw_terms(student, teacher, mask)
    mean = small_loss(contrast=contrast, reduction="mean").raw_terms(student, teacher, mask)
    torch.testing.assert_close(mean["feature"], paper["feature"] / (8 * 8 * 8))
    torch.testing.assert_close(mean["contrast"], paper["contrast"] / anchors_per_position)


def test_the_random_mask_keeps_its_share_and_hides_whole_positions():
    torch.manual_seed(0)
    mask = random_mask(torch.zeros(4, 5, 64, 64), mask_ratio=0.75)
    assert mask.shape == (4, 1, 64, 64)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(0.25, abs=0.015)  # 4 standard deviations: 0.0135
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(random_mask(torch.zeros(1, 1, 8, 8), mask_ratio=0.0), torch.ones(1, 1, 8, 8))


def test_the_random_mask_is_drawn_anew_and_follows_the_seed():
    loss = small_loss()
    student, teacher = small_maps()
    torch.manual_seed(3)
    first, second = loss.raw_terms(student, teacher)["feature"], loss.raw_terms(student, teacher)["feature"]
    torch.manual_seed(3)
    assert torch.equal(loss.raw_terms(student, teacher)["feature"], first)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    mask = random_mask(student, 0.75)
    assert torch.equal(loss.raw_terms(student, teacher, mask)["feature"], first)


def test_the_center_mask_hides_the_middle_third():
    expected = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [1, 1, 0, 0, 1, 1, 1],
            [1, 1, 0, 0, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1],
        ]
    )
    mask = center_mask(torch.zeros(2, 3, 5, 7))  # rows 1 to 3, columns 2 to 4, ends excluded
    assert mask.shape == (2, 1, 5, 7)
    assert torch.equal(mask[0, 0].long(), expected) and torch.equal(mask[1], mask[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_weight": "2e-6"}, "feature_weight='2e-6' is text.*2.0e-6"),
        ({"negatives": "all", "contrast": "spatial"}, "negatives='all' has no meaning for contrast='spatial'"),
        ({"channel_groups": 1}, "no negatives"),
        ({"contrast": "spatial", "patch_size": 1}, "no negatives"),
        ({"teacher_channels": 2040, "channel_groups": 16}, "does not divide teacher_channels=2040; .* 12, 15 or 17"),
        ({"teacher_channels": 7, "channel_groups": 4}, "does not divide teacher_channels=7; use a divisor such as 7"),
    ],
)
def test_bad_options_are_explained_when_the_loss_is_built(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small_loss(**options)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask has shape \(2, 8, 8\); expected \(2, 1, 8, 8\)"):
        small_loss().raw_terms(*small_maps(), some_mask()[:, 0])


def test_groups_need_not_divide_where_no_groups_are_contrasted():
    small_loss(teacher_channels=7, contrast="spatial")
    small_loss(teacher_channels=7, contrast_weight=0)


def test_a_map_too_small_for_a_patch_names_the_size_that_would_do():
    loss = AfDcdLoss(3, 16, **WEIGHTS)
    with pytest.raises(ValueError, match="map is 8x8; after pooling by 4 that is 2x2.*at least 16x16.*128x128"):
        call(loss, *small_maps(3, 16))
    channel = AfDcdLoss(3, 16, **WEIGHTS, contrast="channel")
    assert torch.isfinite(call(channel, *small_maps(3, 16, size=(4, 4)))["contrast"])
    with pytest.raises(ValueError, match="map is 3x8; after pooling by 4 that is 0x2.*at least 4x4"):
        call(channel, *small_maps(3, 16, size=(3, 8)))


# MGD


def test_one_pixel_a_map_by_hand():
    # align is the identity, nothing is hidden; both convolutions only double, at their centre
    loss = MGDLoss(1, 1, weight=0.5, mask_ratio=0.0)
    for convolution in (loss.projector[0], loss.projector[2]):
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        convolution.weight.data[0, 0, 1, 1] = 2.0
    student = torch.tensor([3.0, -1.0]).view(2, 1, 1, 1)  # restored: 12 and, behind the ReLU, 0
    teacher = torch.tensor([10.0, 4.0]).view(2, 1, 1, 1)
    assert call(loss, student, teacher)["mgd"].item() == pytest.approx(0.5 * (2**2 + 4**2) / 2)


def test_mgd_is_af_dcds_feature_term_to_the_bit():
    student, teacher = small_maps()
    ours = MGDLoss(3, 8, weight=2e-5)
    theirs = small_loss(feature_weight=2e-5, contrast_weight=0.0)
    theirs.load_state_dict(ours.state_dict())
    for loss in (ours, theirs):
        loss.generator = torch.Generator().manual_seed(0)
    assert torch.equal(call(ours, student, teacher)["mgd"], call(theirs, student, teacher)["feature"])


def test_hidden_positions_get_no_gradient_but_through_their_neighbours_do_count():
    loss = MGDLoss(3, 8, weight=1.0, mask="center")
    student, teacher = small_maps(size=(9, 9))
    call(loss, student, teacher)["mgd"].backward()
    seen = student.grad.abs().sum(dim=(0, 1)) > 0
    assert not seen[3:6, 3:6].any() and seen[0].all() and seen[8].all()
    moved = teacher.clone()
    moved[:, :, 4, 4] += 1
    assert call(loss, student, moved)["mgd"] != call(loss, student, teacher)["mgd"]


def test_the_teachers_map_is_free_before_the_backward_pass():
    restored, target = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3)
    gone = weakref.ref(target)
    error = restoration_error(restored, target)
    del target
    assert gone() is None
    error.backward()
    assert restored.grad is not None


# Projectors


OPTIONS = {"feature_weight": 2e-2, "contrast_weight": 5e-3, "pool_size": 1, "channel_groups": 4}


def parts(kind):
    """Alignment and projector with random weights, as no projector starts as the identity for long."""
    torch.manual_seed(0)
    modules = nn.ModuleList([nn.Conv2d(3, 8, kernel_size=1), PROJECTORS[kind](8)]).double()
    for layer in modules.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return modules


def map_and_mask(channels=3):
    generator = torch.Generator().manual_seed(1)
    feature_map = torch.randn(2, channels, 7, 6, generator=generator, dtype=torch.float64).requires_grad_()
    return feature_map, (torch.rand(2, 1, 7, 6, generator=generator) < 0.25).double()


@pytest.mark.parametrize("kind", PROJECTORS)
def test_every_projector_sees_zeros_at_hidden_positions(kind):
    align, projector = parts(kind)
    feature_map, mask = map_and_mask()
    hidden = torch.where(mask.bool(), align(feature_map), torch.zeros((), dtype=mask.dtype))
    torch.testing.assert_close(restore(feature_map, mask, align, projector), projector(hidden))


def test_without_a_projector_the_aligned_maps_are_compared():
    torch.manual_seed(0)
    options = {**OPTIONS, "projector": "none", "mask_ratio": 0.0, "reduction": "mean"}
    loss = build_loss("af_dcd", {"af_dcd": options}, 6, 8)
    assert set(loss.state_dict()) == {"align.weight", "align.bias"}
    student, teacher = torch.randn(2, 6, 8, 8, requires_grad=True), torch.randn(2, 8, 8, 8)
    terms = loss(Activations(torch.zeros(2, 3, 8, 8), student), Activations(torch.zeros(2, 3, 8, 8), teacher))
    aligned = F.conv2d(student, loss.align.weight, loss.align.bias)
    torch.testing.assert_close(terms["feature"], 2e-2 * F.mse_loss(aligned, teacher))
    torch.testing.assert_close(terms["contrast"], 5e-3 * omni_contrast(aligned, teacher, channel_groups=4) / 4)


@pytest.mark.parametrize("name", ["af_dcd", "mgd"])
@pytest.mark.parametrize(
    ("options", "hides"), [({}, "mask_ratio=0.75"), ({"mask": "center", "mask_ratio": 0.0}, "mask='center'")]
)
def test_hidden_positions_need_a_projector(name, options, hides):
    given = {**(OPTIONS if name == "af_dcd" else {}), "projector": "none", **options}
    with pytest.raises(ValueError, match=f"projector='none' restores nothing, but {hides} hides positions: set mask_r"):
        build_loss(name, {name: given}, 6, 8)


def count(kind, channels=2048):
    with torch.device("meta"):
        return sum(weight.numel() for weight in PROJECTORS[kind](channels).parameters())


def test_the_projectors_have_the_documented_sizes():
    assert count("plain") == 75_501_568 and count("enhanced") == 2 * 75_501_568
    assert count("bottleneck") == 2 * 2048 * 512 + 2 * 9 * 512**2 + 3 * 512 + 2048 == 6_819_328
    assert count("depthwise") == 2 * (2048**2 + 9 * 2048 + 2 * 2048) == 8_433_664


def test_the_weights_keep_their_names():
    names = {kind: [name for name in PROJECTORS[kind](8).state_dict() if "weight" in name] for kind in PROJECTORS}
    assert names == {
        "plain": ["0.weight", "2.weight"],
        "enhanced": ["first.0.weight", "second.0.weight", "restore_first.weight", "restore_second.weight"],
        "bottleneck": ["0.weight", "2.weight", "4.weight", "6.weight"],
        "depthwise": ["0.weight", "1.weight", "3.weight", "4.weight"],
        "none": [],
    }


def by_hand(kind, x, w, b):
    """What a projector gives, by its weights and biases in their order."""
    if kind == "enhanced":
        shallow = F.relu(F.conv2d(x, w[0], b[0], padding=1))
        deep = F.relu(F.conv2d(shallow, w[1], b[1], padding=1))
        return (F.conv2d(shallow, w[2], b[2], padding=1) + F.conv2d(deep, w[3], b[3], padding=1)) / 2
    if kind == "bottleneck":
        narrow = F.relu(F.conv2d(x, w[0], b[0]))
        narrow = F.relu(F.conv2d(narrow, w[1], b[1], padding=1))
        return F.conv2d(F.relu(F.conv2d(narrow, w[2], b[2], padding=1)), w[3], b[3])
    middle = F.relu(F.conv2d(F.conv2d(x, w[0], b[0], padding=1, groups=8), w[1], b[1]))
    return F.conv2d(F.conv2d(middle, w[2], b[2], padding=1, groups=8), w[3], b[3])


@pytest.mark.parametrize("kind", ["enhanced", "bottleneck", "depthwise"])
def test_a_projector_is_its_convolutions(kind):
    _, projector = parts(kind)
    feature_map, _ = map_and_mask(8)
    parameters = list(projector.parameters())
    torch.testing.assert_close(projector(feature_map), by_hand(kind, feature_map, parameters[::2], parameters[1::2]))


def test_the_depthwise_projector_starts_as_the_identity_on_a_map_behind_a_relu():
    feature_map = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    projector = PROJECTORS["depthwise"](6)
    assert torch.equal(projector(feature_map), feature_map.relu())
    projector(feature_map).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in projector.parameters())


def test_channels_the_bottleneck_cannot_quarter_are_explained():
    with pytest.raises(ValueError, match="projector='bottleneck' works at 1/4 .* teacher_channels=18; use"):
        build_loss("af_dcd", {"af_dcd": {**OPTIONS, "channel_groups": 2, "projector": "bottleneck"}}, 3, 18)
