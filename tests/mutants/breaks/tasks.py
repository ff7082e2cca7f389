"""Breaks of what detectors and segmenters learn, answer and are scored by."""

from tests.mutants.broken import Break

FCOS = "xfer/heads/fcos.py"
BOXES = "xfer/heads/detections.py"
ANCHORS = "xfer/heads/anchors.py"
TWO_STAGES = "xfer/heads/faster_rcnn.py"
PIXELS = "xfer/tasks/pixels.py"
DETECT = "xfer/tasks/detect.py"
SEGMENT = "xfer/tasks/segment.py"
MODEL = "xfer/model.py"
DENSE = "tests/xfer/tasks/test_dense_"
GRADIENTS = (f"{DENSE}data.py::test_a_source_gives_no_gradient_to_classes_that_it_does_not_annotate",)
PADDED = (f"{DENSE}data.py::test_what_a_letterbox_pads_has_no_class",)
ODD = (f"{DENSE}data.py::test_images_of_one_pixel_and_of_thin_lines_are_scored_trained_on_and_answered",)
FALLS = (f"{DENSE}fit.py::test_the_loss_falls_and_the_rows_have_the_measure_by_source",)
ANSWERS = (f"{DENSE}models.py::test_path_picture_and_arrays_have_one_answer_in_pixels_of_the_original",)
ALONE = (f"{DENSE}models.py::test_a_branch_of_all_the_weight_is_the_model_of_that_branch_alone",)
BUNDLE = (f"{DENSE}packed.py::test_a_bundle_keeps_how_images_come_to_their_size",)
SETTLED = (f"{DENSE}pretrained.py::test_batchnorm_above_pretrained_branches_begins_with_statistics_of_images",)
RANKS = (f"{DENSE}two_ranks.py::test_losses_and_scores_are_those_of_one_process_and_of_the_checkpoint[fpn-1]",)
REFUSALS = (f"{DENSE}refusals.py",)
TILES = ("tests/xfer/tasks/test_tiles.py",)

BREAKS = (
    Break(
        "tiles-cut-without-overlap",
        "tiles keep what lies at their cuts",
        "xfer/tiles.py",
        "min(tile.size, length), tile.overlap // 2",
        "min(tile.size, length), 0",
        TILES,
    ),
    Break(
        "tiles-in-training",
        "a model in training sees tiles",
        "xfer/model.py",
        "{}, None if self.training else self.tile",
        "{}, self.tile",
        TILES,
    ),
    Break(
        "tiles-trained-at-another-scale",
        "crops to train on show all of a large image, as small as a tile",
        "xfer/config.py",
        "tuple(min(1.0, factor * share) for factor in TILE_SCALE)",
        "TILE_SCALE",
        TILES,
    ),
    Break(
        "large-images-all-at-once",
        "an evaluation holds a whole batch of large images",
        "shards/loading/evaluate.py",
        "batch_size = min(config.batch_size, world * at_once(config.batch_size, size))",
        "batch_size = config.batch_size",
        TILES,
    ),
    Break(
        "bottlenecks-not-dilated",
        "a ResNet of bottlenecks keeps its strides under deeplabv3",
        "xfer/backbone.py",
        "replace_stride_with_dilation=[False, dilated, dilated]",
        "replace_stride_with_dilation=[False, False, dilated]",
        ("tests/xfer/test_segmentation_parts.py",),
    ),
    Break(
        "dilations-not-by-stride",
        "deeplabv3 has the dilations of stride 8 on a coarser map",
        "xfer/heads/deeplabv3.py",
        "max(1, span // stride)",
        "max(1, span // 8)",
        ("tests/xfer/test_segmentation_parts.py",),
    ),
    Break(
        "pooled-for-a-pyramid",
        "a head on maps takes the projections of a classifier",
        "xfer/transfer/source.py",
        "levels_of(theirs) and pooled[0] == pooled[1]",
        "levels_of(theirs)",
        (f"{DENSE}pretrained.py",),
    ),
    Break(
        "focal-mask-ignored",
        "a source pushes down classes of boxes that it does not annotate",
        BOXES,
        "counts = (self.masks[batch.sources] & batch.valid[:, None])",
        "counts = (torch.ones_like(self.masks[batch.sources]) & batch.valid[:, None])",
        GRADIENTS,
    ),
    Break(
        "pixel-mask-ignored",
        "a source pushes down classes of pixels that it does not annotate",
        PIXELS,
        "outside = _known(targets, masks), ~masks[:, :, None, None]",
        "outside = _known(targets, masks), ~masks[:, :, None, None] & False",
        GRADIENTS,
    ),
    Break(
        "ignored-boxes-learnt",
        "boxes that are to be ignored are objects like others",
        FCOS,
        "    ignored = boxes[:, 5] > 0\n",
        "    ignored = boxes[:, 5] > 1\n",
        ("tests/xfer/test_fcos.py", "tests/xfer/test_retinanet.py"),
    ),
    Break(
        "ignored-boxes-counted",
        "boxes that are to be ignored count as missed",
        "xfer/tasks/average_precision.py",
        "crowd = found[kept], true[:, 5] > 0",
        "crowd = found[kept], true[:, 5] > 1",
        ("tests/xfer/test_average_precision.py",),
    ),
    Break(
        "padding-is-a-class",
        "what a letterbox pads has the first class, in place of none",
        "shards/loading/transforms.py",
        "constant_values=VOID",
        "constant_values=0",
        PADDED,
    ),
    Break(
        "boxes-left-in-the-square",
        "boxes are answered in pixels of the square, not of the image",
        DETECT,
        "boxes = frame.to_original(found.boxes).cpu()",
        "boxes = found.boxes.cpu()",
        ANSWERS,
    ),
    Break(
        "masks-scored-in-the-square",
        "segmenters are scored on the pixels of the square",
        SEGMENT,
        "self._scores.add([answer.cpu()], [original.mask], [source], [int(batch.positions[at])])",
        "answer = label_map(output[at], size, (size, size), (size, size), self._known[source]); "
        "self._scores.add([answer.cpu()], [batch.masks[at].cpu()], [source], [int(batch.positions[at])])",
        ODD,
    ),
    Break(
        "not-settled",
        "BatchNorm above pretrained branches stays still with the statistics of nothing",
        "xfer/begin.py",
        "    settle(model, calibration_images(data, recipe.data, STATISTICS_IMAGES), norms)\n",
        "    assert norms is not None\n",
        SETTLED,
    ),
    Break(
        "all-settled",
        "pretrained branches get new statistics too",
        "xfer/begin.py",
        "and not name.startswith(kept)]",
        "and not name.startswith(kept[:0])]",
        SETTLED,
    ),
    Break(
        "rank-0-scores-alone",
        "on several ranks the score is that of one rank's images",
        "xfer/run.py",
        "collected, engine.device, engine.sum, engine.gather, with_side=side",
        "collected, engine.device, engine.sum, with_side=side",
        RANKS,
    ),
    Break(
        "resize-left-out-of-the-bundle",
        "a bundle sees the middle of images, whatever its run saw",
        "xfer/bundle.py",
        "resize=recipe.data.resize, model=model",
        "model=model",
        BUNDLE,
    ),
    Break(
        "centre-for-places",
        "a detector or segmenter sees only the middle of images unless told otherwise",
        "xfer/config.py",
        '{"resize": "letterbox"}',
        '{"resize": "centre"}',
        FALLS,
    ),
    Break(
        "last-branch-sets-the-grid",
        "a level is fused on the grid of the coarsest branch",
        MODEL,
        "        for name, levels in found.items():\n            z = ",
        "        for name, levels in reversed(found.items()):\n            z = ",
        ALONE,
    ),
    Break(
        "dense-faults-forgotten",
        "keys that mean nothing for a head are taken and ignored",
        "xfer/prepare.py",
        "    faults += task.recipe_faults(recipe)\n",
        "",
        REFUSALS,
    ),
    Break(
        "empty-sources-taken",
        "a source in which nothing is annotated is trained on",
        "xfer/tasks/dense.py",
        "        if not any(stats.class_counts):\n",
        "        if False:\n",
        REFUSALS,
    ),
    Break(
        "crowds-trained-on",
        "a source of crowds and difficult objects alone is trained on",
        "xfer/tasks/dense.py",
        "        if sum(stats.class_counts) == stats.ignored:\n",
        "        if False:\n",
        REFUSALS,
    ),
    Break(
        "ignored-boxes-not-counted",
        "a manifest does not say how many of its boxes are ignored",
        "shards/ingest/write.py",
        "sample.class_counts, sample.ignored)",
        "sample.class_counts, 0)",
        REFUSALS,
    ),
    Break(
        "recall-of-ignored",
        "detections of ignored boxes count as found in the recall",
        "xfer/tasks/average_precision.py",
        "recalls.append((hits[own, 0] & ~left_out[own, 0])",
        "recalls.append(hits[own, 0]",
        ("tests/xfer/test_average_precision.py",),
    ),
    Break(
        "pictures-flattened",
        "pictures of two sub-folders have one name",
        "xfer/predict.py",
        "inside = (path.relative_to(one) for one in given if one in path.parents)",
        "inside = iter(())",
        (f"{DENSE}models.py::test_pictures_and_masks_keep_sub_folders_and_none_takes_the_place_of_another",),
    ),
    Break(
        "untrained-head-chosen",
        "where nothing scores above 0 step 0 is the model",
        "xfer/history.py",
        "-step if found[step] else step)",
        "-step)",
        ("tests/xfer/test_select.py",),
    ),
    Break(
        "crowded-anchors-learnt",
        "anchors in a crowd are background",
        ANCHORS,
        "left_out |= (matched < 0) & (_inside(places, crowds[:, :4]) > 0.5).any(1)",
        "pass",
        ("tests/xfer/test_retinanet.py",),
    ),
    Break(
        "unsure-anchors-learnt",
        "anchors that are neither near nor far from an object are background",
        ANCHORS,
        "left_out = matched == Matcher.BETWEEN_THRESHOLDS",
        "left_out = matched < Matcher.BETWEEN_THRESHOLDS",
        ("tests/xfer/test_retinanet.py",),
    ),
    Break(
        "every-place-drawn",
        "the loss of two stages is the mean over all places, not over those that would be drawn",
        TWO_STAGES,
        "drawn_others = torch.minimum(others, most - drawn)",
        "drawn_others = others",
        ("tests/xfer/test_faster_rcnn.py",),
    ),
    Break(
        "filled-up-learnt",
        "what proposals are filled up with is background",
        TWO_STAGES,
        "positive, negative = positive & there, negative & there",
        "pass",
        ("tests/xfer/test_faster_rcnn.py",),
    ),
    Break(
        "box-of-another-class",
        "an object of two stages is answered with the box of the class before it",
        TWO_STAGES,
        "clip_boxes_to_image(_by_class(output)[:, :, 1:], size)",
        "clip_boxes_to_image(_by_class(output)[:, :, :-1], size)",
        ("tests/xfer/test_faster_rcnn.py",),
    ),
    Break(
        "cut-out-elsewhere",
        "a proposal is looked at elsewhere where a branch sees the image at a size of its own",
        TWO_STAGES,
        "return 1 / stride if rows == math.ceil(height / stride) else rows / height",
        "return 1 / stride",
        ("tests/xfer/test_faster_rcnn.py",),
    ),
    Break(
        "softmax-over-unlike-sources",
        "a softmax over background learns from sources of different classes",
        "xfer/prepare.py",
        "if not is_two_stage(kind) or len(set(classes.values())) < 2:",
        "if classes:",
        REFUSALS,
    ),
    Break(
        "two-stages-exported",
        "a detector of two stages is exported",
        "xfer/export/write.py",
        "    if is_two_stage(trained.model.kind):\n",
        "    if is_two_stage(trained.model.task):\n",
        REFUSALS,
    ),
    Break(
        "faulty-head-blames-data",
        "a fault of a detector's head brings those of a classifier's data",
        "xfer/prepare.py",
        'task = _task(error.given.get("model"))',
        'task = task_of(model.task if isinstance(model, ModelConfig) else "classification")',
        REFUSALS,
    ),
    Break(
        "dense-trials-are-accuracies",
        "a row of a study says that its AP is an accuracy",
        "tuning/trial.py",
        "if task.sees_whole:\n        return found",
        "if task.sees_whole and False:\n        return found",
        (f"{DENSE}trials.py",),
    ),
)
