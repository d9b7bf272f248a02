"""Task losses, against PyTorch, segmentation-models-pytorch and a plain loop."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss

from afdcd_hf.losses.task import TASK_LOSSES, TaskLoss, dice_loss, hard_pixel_cross_entropy, lovasz_loss

WEIGHTS = [0.5, 2.0, 1.0, 3.0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 6, 5, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (2, 6, 5), generator=generator)
    labels[0, :2] = 255
    return scores, labels


def term(scores, labels, **settings):
    return TaskLoss(**settings)(SimpleNamespace(logits=scores), labels)["task"]


def test_class_weights_give_pytorchs_weighted_mean(batch):
    expected = F.cross_entropy(*batch, weight=torch.tensor(WEIGHTS), ignore_index=255)
    torch.testing.assert_close(term(*batch, class_weights=WEIGHTS), expected)


def test_ohem_uses_pixels_below_the_threshold_and_at_least_the_hardest_share(batch):
    scores, labels = batch
    losses = F.cross_entropy(scores, labels, reduction="none", ignore_index=255)[labels != 255].sort().values.tolist()
    below = [loss for loss in losses if math.exp(-loss) <= 0.4]
    assert 0 < len(below) < len(losses)
    assert hard_pixel_cross_entropy(scores, labels, threshold=0.4).item() == pytest.approx(sum(below) / len(below))
    hardest = losses[-int(0.5 * len(losses)) :]
    few = hard_pixel_cross_entropy(scores, labels, threshold=0.0, at_least=0.5)
    assert few.item() == pytest.approx(sum(hardest) / len(hardest))


def test_dice_and_lovasz_equal_segmentation_models_pytorch(batch):
    scores, labels = batch
    theirs = DiceLoss("multiclass", ignore_index=255)(scores, labels)  # all classes occur, so the means agree
    torch.testing.assert_close(dice_loss(scores, labels), theirs)
    theirs = LovaszLoss("multiclass", ignore_index=255)(scores, labels)
    torch.testing.assert_close(lovasz_loss(scores, labels), theirs)


@pytest.mark.parametrize("loss", [dice_loss, lovasz_loss])
def test_a_class_missing_from_the_labels_does_not_count(loss, batch):
    scores, labels = batch
    surer = torch.where(torch.arange(4).view(1, 4, 1, 1) == 3, -1e4, scores)  # class 3 is never predicted
    labels = labels.where(labels != 3, 255)
    torch.testing.assert_close(loss(surer, labels), loss(surer[:, :3], labels))


@pytest.mark.parametrize("kind", TASK_LOSSES)
def test_ignored_pixels_count_for_nothing_and_a_batch_of_them_gives_zero(kind, batch):
    scores, labels = batch
    other = torch.where(labels.unsqueeze(1) == 255, 7.0, scores)
    torch.testing.assert_close(term(scores, labels, kind=kind), term(other, labels, kind=kind))
    loss = term(scores, torch.full_like(labels, 255), kind=kind)
    loss.backward()
    assert loss.item() == 0 and torch.count_nonzero(scores.grad) == 0


def test_several_losses_are_summed_at_the_labels_size(batch):
    scores, labels = batch
    small, both = scores[..., ::2, ::2], "cross_entropy+lovasz"
    parts = sum(
        term(small, labels, kind=kind, class_weights=own)
        for kind, own in [("cross_entropy", WEIGHTS), ("lovasz", None)]
    )
    torch.testing.assert_close(term(small, labels, kind=both, class_weights=WEIGHTS), parts)


def test_invalid_options_are_rejected():
    with pytest.raises(ValueError, match="task_loss='focal': unknown 'focal'; known: cross_entropy, ohem"):
        TaskLoss(kind="focal")
    with pytest.raises(ValueError, match="class_weights have no effect on task_loss='dice'"):
        TaskLoss(kind="dice", class_weights=WEIGHTS)
    model = SimpleNamespace(config=SimpleNamespace(num_labels=5))
    with pytest.raises(ValueError, match="class_weights holds 4 numbers for 5 classes"):
        TaskLoss.for_model(model, SimpleNamespace(class_weights=WEIGHTS))
