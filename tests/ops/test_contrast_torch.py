"""The blocked backend: equal to the reference whatever the blocks, no similarity matrix kept, and how it is chosen."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from afdcd_hf.ops import channel_contrast, contrast, contrast_blocks, contrast_torch, omni_contrast, spatial_contrast
from afdcd_hf.ops.threads import map_in_threads

# Largest difference from the reference, as a share of the largest number. float32: a distance of 100 carries an error
# of 1e-5, a similarity (τ = 0.07) one of 1e-4, and so does the reference; see the comparison with float64 below.
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}

CASES = {
    # name: function, options, shape
    "other groups": (omni_contrast, {"patch_size": 2, "channel_groups": 3}, (2, 15, 4, 6)),
    "all": (omni_contrast, {"patch_size": 3, "channel_groups": 2, "negatives": "all"}, (2, 10, 7, 9)),
    "one channel in a group": (omni_contrast, {"patch_size": 2, "channel_groups": 7}, (1, 7, 6, 2)),
    "one patch": (omni_contrast, {"patch_size": 4, "channel_groups": 5}, (1, 15, 4, 4)),
    "defaults, long rows": (omni_contrast, {}, (1, 48, 8, 12)),
    "spatial": (spatial_contrast, {"patch_size": 3}, (3, 5, 7, 6)),
    "spatial, long rows": (spatial_contrast, {"patch_size": 9}, (1, 5, 9, 18)),
    "channel": (channel_contrast, {"channel_groups": 5}, (2, 15, 3, 5)),
}


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Blocks of one channel, two rows and few patches, so that every loop is taken several times."""
    monkeypatch.setattr(contrast_blocks, "BLOCK_NUMBERS", 7)
    monkeypatch.setitem(contrast_torch.NUMBERS, "cpu", contrast_torch.Sizes(maps=100, matrix=30))


def maps_of(shape, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    maps = [scale * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]
    return maps[0].requires_grad_(), maps[1]


def value_and_gradient(function, student, teacher, **options):
    student = student.detach().requires_grad_()
    loss = function(student, teacher, **options)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    return loss.detach(), gradient


def largest_difference(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_equals_reference(function, maps, tolerance, backend="torch", **options):
    expected = value_and_gradient(function, *maps, **options, backend="reference")
    actual = value_and_gradient(function, *maps, **options, backend=backend)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert largest_difference(one, other) < tolerance


@pytest.mark.parametrize("temperature", [0.07, 2.0])  # peaked: few pairs weigh anything; flat: all do
@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_reference(case, dtype, distance, temperature):
    function, options, shape = CASES[case]
    options = {**options, "distance": distance, "temperature": temperature}
    assert_equals_reference(function, maps_of(shape, dtype), TOLERANCE[dtype], **options)


@pytest.mark.parametrize("few", [0.0, 2.0])
@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "defaults, long rows"])  # too slow
def test_many_blocks_give_what_one_gives(case, distance, few, tiny_blocks, monkeypatch):
    monkeypatch.setattr(contrast_torch, "FEW", few)  # 0: always all pairs; 2: always those that weigh anything
    function, options, shape = CASES[case]
    options = {**options, "distance": distance, "temperature": 0.5}
    assert_equals_reference(function, maps_of(shape, torch.float64), TOLERANCE[torch.float64], **options)


@pytest.mark.parametrize("kind", ["normal", "rectified", "close to the teacher", "far from zero"])
def test_float32_is_as_near_to_float64_as_the_reference_is(kind):
    student, teacher = (maps.detach() for maps in maps_of((1, 512, 8, 8)))
    if kind == "rectified":
        student, teacher = student.relu(), teacher.relu()
    elif kind == "close to the teacher":
        student = teacher + 1e-3 * student
    elif kind == "far from zero":  # where Σs + Σt - 2·Σmin(s, t) cancels most
        student, teacher = student + 10, teacher + 10
    # a temperature of 0.5 with 32 channels: distances differ by a few times that, so that many pairs weigh something
    options = {"temperature": 0.5 if kind != "close to the teacher" else 5.0}
    _, exact = value_and_gradient(omni_contrast, student.double(), teacher.double(), **options, backend="reference")
    errors = {}
    for backend in ("reference", "torch"):
        _, gradient = value_and_gradient(omni_contrast, student, teacher, **options, backend=backend)
        errors[backend] = ((gradient.double() - exact).norm() / exact.norm()).item()
    allowed = 20 if kind == "far from zero" else 4
    assert errors["torch"] < allowed * errors["reference"] + 1e-7, errors


def test_threads_change_no_bit_and_keep_their_setting_to_themselves():
    maps = maps_of((2, 256, 16, 16))  # 32 patches of 4096 numbers are no single portion
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(value_and_gradient(omni_contrast, *maps, backend="torch"))
            assert torch.get_num_threads() == number
            assert map_in_threads(lambda _: torch.get_num_threads(), range(6)) == [1] * 6
        assert map_in_threads(lambda item: (item, torch.is_grad_enabled()), [5, 6]) == [(5, False), (6, False)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda item: 1 / item, [1, 0])


@pytest.mark.parametrize("layout", ["channels last", "transposed", "strided", "expanded"])
def test_maps_of_any_strides_are_read_where_they_lie(layout):
    student, teacher = (maps.detach() for maps in maps_of((2, 12, 8, 8)))
    change = {
        "channels last": lambda maps: maps.to(memory_format=torch.channels_last),
        "transposed": lambda maps: maps.transpose(2, 3),
        "strided": lambda maps: maps[:, ::2, :, 1::2],
        "expanded": lambda maps: maps[:1].expand(2, -1, -1, -1),
    }[layout]
    options = {"patch_size": 2, "channel_groups": 3}
    assert_equals_reference(omni_contrast, (change(student), change(teacher)), 1e-5, **options)


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("few", [0.0, 2.0])
def test_equal_vectors_pull_nowhere(few, distance, monkeypatch):
    monkeypatch.setattr(contrast_torch, "FEW", few)
    student, teacher = maps_of((1, 12, 4, 4))
    student, teacher = student.detach().clone(), teacher.clone()
    student[:, :6] = teacher[:, :6]  # the positives of two groups at distance 0, those of the others not
    options = {"patch_size": 2, "channel_groups": 4, "distance": distance, "temperature": 5.0}
    assert_equals_reference(omni_contrast, (student, teacher), 1e-5, **options)


def test_nan_shows_in_loss_and_gradient():
    student, teacher = maps_of((1, 12, 4, 4))
    teacher[0, 0, 0, 0] = torch.nan
    loss, gradient = value_and_gradient(omni_contrast, student, teacher, patch_size=2, channel_groups=3)
    assert loss.isnan() and gradient.isnan().any()


def kept_for_backward(function):
    """Tensors saved for the backward pass while `function` runs."""
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return kept


def test_no_similarity_is_kept_for_the_backward_pass():
    student, teacher = maps_of((1, 16, 8, 8))  # the maps have 1024 numbers, the matrix of the 4 patches 4·256²
    kept = kept_for_backward(lambda: omni_contrast(student, teacher, backend="torch"))
    assert sum(tensor.numel() for tensor in kept) <= student.numel()
    kept = kept_for_backward(lambda: omni_contrast(student, teacher, backend="reference"))
    assert sum(tensor.numel() for tensor in kept) > 4 * 256**2  # the hook sees such things


def test_no_block_is_larger_than_its_bound(monkeypatch):
    sizes = []
    original = contrast_blocks._empty_pairs

    def spy(channels, anchors, candidates):
        pairs = original(channels, anchors, candidates)
        sizes.append(pairs[0].numel())
        return pairs

    monkeypatch.setattr(contrast_blocks, "_empty_pairs", spy)
    for shape, options in (((1, 64, 16, 16), {}), ((1, 32, 32, 32), {"patch_size": 16})):  # V = 256; V = 4096
        value_and_gradient(omni_contrast, *maps_of(shape), **options, backend="torch")
        assert max(sizes) <= contrast_blocks.BLOCK_NUMBERS
        sizes.clear()


def test_without_a_gradient_none_is_formed(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a gradient was formed")

    monkeypatch.setattr(contrast_torch, "_pull", refuse)
    student, teacher = maps_of((1, 12, 4, 4))
    options = {"patch_size": 2, "channel_groups": 3, "backend": "torch"}
    with torch.no_grad():
        without = omni_contrast(student, teacher, **options)
    detached = omni_contrast(student.detach(), teacher.requires_grad_(), **options)
    assert not without.requires_grad and not detached.requires_grad
    monkeypatch.undo()
    assert torch.equal(without, omni_contrast(student, teacher, **options)) and torch.equal(without, detached)


def test_backward_twice_through_a_retained_graph_adds_up():
    student, teacher = maps_of((1, 12, 4, 4))
    loss = omni_contrast(student, teacher, patch_size=2, channel_groups=3, backend="torch")
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    loss.backward()
    assert torch.equal(student.grad, 2 * once)


def test_a_second_derivative_is_refused_and_the_reference_named():
    student, teacher = maps_of((1, 12, 4, 4))
    loss = omni_contrast(student, teacher, patch_size=2, channel_groups=3, backend="torch")
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; use backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("with_gradient", [True, False])
def test_the_operator_keeps_the_rules_of_pytorch(with_gradient):
    student, teacher = maps_of((1, 12, 4, 4))
    arguments = (student.requires_grad_(with_gradient), teacher, 2, 3, 0.5, "l1", "other_groups", with_gradient, False)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(contrast_torch._fused_contrast, arguments, test_utils=tests)


def test_a_compiled_model_holds_the_contrast_without_a_break():
    student, teacher = maps_of((1, 12, 5, 4))
    options = {"patch_size": 2, "channel_groups": 3, "temperature": 0.5}

    def loss(student, teacher):
        with torch.autocast("cpu", torch.bfloat16):
            return 2 * omni_contrast(torch.tanh(student), teacher, **options)

    expected = value_and_gradient(loss, student, teacher)
    actual = value_and_gradient(torch.compile(loss, backend="aot_eager", fullgraph=True), student, teacher)
    torch.testing.assert_close(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["other groups", "channel"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_compiled_blocks_equal_the_reference(case, distance):
    function, options, shape = CASES[case]
    options = {**options, "distance": distance, "temperature": 0.5}
    assert_equals_reference(function, maps_of(shape), TOLERANCE[torch.float32], backend="compiled", **options)


def test_auto_means_torch_on_a_cpu_and_says_so_once(caplog):
    contrast._log_choice.cache_clear()
    student, teacher = maps_of((1, 6, 4, 4))
    with caplog.at_level(logging.INFO, logger="afdcd_hf.ops.contrast"):
        auto = [spatial_contrast(student, teacher, patch_size=2) for _ in range(3)]
        named = spatial_contrast(student, teacher, patch_size=2, backend="torch")
    assert [record.getMessage() for record in caplog.records] == [
        "contrast backend on cpu: torch (chosen by backend='auto')"
    ]
    assert torch.equal(auto[0], named)


def test_on_a_gpu_auto_means_triton_or_says_why_not(monkeypatch, caplog):
    class OnGpu:
        device, dtype = torch.device("cuda", 0), torch.float32

    contrast._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="afdcd_hf.ops.contrast"):
        monkeypatch.setattr(contrast, "triton_available", lambda device, dtype: None)
        assert contrast._automatic(OnGpu, OnGpu) == "triton"
        monkeypatch.setattr(contrast, "triton_available", lambda device, dtype: "it is Tuesday")
        assert contrast._automatic(OnGpu, OnGpu) == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "contrast backend on cuda:0: triton (chosen by backend='auto')",
        "contrast backend on cuda:0: torch (chosen by backend='auto'; triton cannot run: it is Tuesday)",
    ]
    contrast._log_choice.cache_clear()


def test_asking_for_triton_without_a_gpu_says_why_not(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    student, teacher = maps_of((1, 6, 4, 4))
    with pytest.raises(ValueError, match="backend='triton' cannot run: .*; use backend='torch'"):
        spatial_contrast(student, teacher, patch_size=2, backend="triton")


def test_importing_the_functions_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import afdcd_hf.ops; assert sys.modules['triton'] is None"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
