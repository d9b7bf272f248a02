"""EoMT, Mask2Former and MaskFormer as segmenters: held against their own post-processing."""

from __future__ import annotations

import pytest
import torch
from images import labelled_image
from mask_models import MASK_MODELS, mask_model
from torch.nn import functional as F
from transformers import EomtImageProcessor, Mask2FormerImageProcessor, MaskFormerImageProcessor

from afdcd_hf import as_segmenter, evaluate_segmenter
from afdcd_hf.inference.segment import Predictor, Sample
from afdcd_hf.models.loading import load_model, load_processor
from afdcd_hf.models.mask_classification import class_scores, with_logits

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# their processors stretch masks to a size of their own first; masks that have it already stay as they are
PROCESSORS = {
    "eomt": (EomtImageProcessor(), 8, {"size": {"shortest_edge": 8, "longest_edge": 8}, "target_sizes": [(8, 8)] * 2}),
    "mask2former": (Mask2FormerImageProcessor(), 384, {}),
    "maskformer": (MaskFormerImageProcessor(), 8, {}),
}


@pytest.mark.parametrize("kind", MASK_MODELS)
def test_scores_and_classes_are_those_of_their_own_post_processing(kind):
    processor, size, options = PROCESSORS[kind]
    model = with_logits(mask_model(kind))
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model(pixel_values=IMAGES)
        # a random model's classes and masks are all alike
        classes = outputs.class_queries_logits = outputs.class_queries_logits + 3 * torch.randn(2, 5, 5)
        masks = F.interpolate(outputs.masks_queries_logits + 3 * torch.randn(2, 5, 8, 8), (size, size))
        outputs.masks_queries_logits = masks
        scores = class_scores(classes, masks)
        expected = processor.post_process_semantic_segmentation(outputs, **options)
    assert scores.shape == (2, 4, size, size)
    assert torch.equal(scores.argmax(1), torch.stack(expected)) and len(scores.argmax(1).unique()) > 1


@pytest.mark.parametrize("kind", MASK_MODELS)
def test_a_saved_model_and_a_wrapped_one_give_the_logarithm_of_the_scores(kind, tmp_path):
    model = mask_model(kind)
    model.save_pretrained(tmp_path)
    loaded, wrapped = load_model(tmp_path).eval(), as_segmenter(model).eval()
    with torch.no_grad():
        outputs, logits = with_logits(loaded)(pixel_values=IMAGES), wrapped(pixel_values=IMAGES).logits
    scores = class_scores(outputs.class_queries_logits, outputs.masks_queries_logits)
    torch.testing.assert_close(logits.softmax(1), scores / scores.sum(1, keepdim=True))
    assert torch.equal(logits, outputs.logits) and wrapped.config.id2label == model.config.id2label
    torch.testing.assert_close(torch.compile(loaded, backend="eager")(pixel_values=IMAGES).logits, logits)


def test_logits_stay_finite_where_no_mask_is_left():
    classes, masks = torch.zeros(1, 2, 5), torch.full((1, 2, 4, 4), -1e4)
    model = mask_model("eomt")
    (hook,) = [one for one in with_logits(model)._forward_hooks.values() if one.__name__ == "_add_logits"]
    outputs = type("Outputs", (dict,), {"class_queries_logits": classes, "masks_queries_logits": masks})()
    assert hook(model, (), outputs)["logits"].isfinite().all()


def test_a_saved_model_is_scored_and_its_processor_leaves_splitting_to_windows(tmp_path):
    mask_model("eomt").save_pretrained(tmp_path)
    own = EomtImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, do_split_image=True)
    own.save_pretrained(tmp_path)  # an image of 32x48 stays so, and is wider than the model takes
    processor = load_processor(tmp_path)
    assert not processor.do_split_image
    scores = evaluate_segmenter(load_model(tmp_path), [labelled_image(0, 4, 32, 48)], processor=processor)
    assert scores["num_labelled"] == 1 and scores["protocol"]["window"] == [32, 32]


def test_images_smaller_than_eomts_are_padded_with_zeros():
    model, small = mask_model("eomt", image_size=40), torch.randn(3, 20, 28)
    [(_, found)] = Predictor(with_logits(model)).label_maps([[Sample("a", small, (20, 28))]])
    with torch.no_grad():
        logits = model(pixel_values=F.pad(small, (0, 12, 0, 20))[None]).logits
    stretched = F.interpolate(logits, size=(40, 40), mode="bilinear")
    assert torch.equal(found, stretched.argmax(1)[0, :20, :28].to(found.dtype))
