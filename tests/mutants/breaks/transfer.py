"""Breaks of probes, stages, features and what a run begins with."""

from tests.mutants.broken import Break

STAGES_FILE = "xfer/transfer/stages.py"
STAGES = ("tests/xfer/transfer/test_stages.py",)
LEAKS = ("tests/xfer/transfer/test_leaks.py",)
BRANCH = ("tests/xfer/transfer/test_branches.py",)
QUANT_MODE = ("tests/xfer/transfer/test_quant.py",)
FEATURES = ("tests/xfer/transfer/test_features.py",)
SOURCE = ("tests/xfer/transfer/test_source.py",)
TRANSFERABILITY_FILE = "xfer/transfer/transferability.py"
TRANSFERABILITY = ("tests/xfer/transfer/test_transferability.py",)
SUITED = ("tests/xfer/test_features.py",)
SOUP = ("tests/xfer/test_soup.py",)
PROBE = ("tests/xfer/transfer/test_probe.py",)
HEAD = "tests/xfer/transfer/test_head.py"
HEAD_FIT = (f"{HEAD}::test_the_fit_from_a_start_is_pulled_to_it_and_unasked_rows_are_it_to_the_bit",)

WEIGHTS_FILE = "xfer/transfer/weights.py"
WEIGHTS = ("tests/xfer/transfer/test_weights.py",)

BREAKS = (
    Break(
        "fusion-of-noise",
        "a branch gets a part for any gain, within the noise or not",
        WEIGHTS_FILE,
        "torch.stack(means).mean() > error",
        "torch.stack(means).mean() > -error",
        WEIGHTS,
    ),
    Break(
        "fusion-by-random-part",
        "fusion weights are chosen by a random part of every source",
        WEIGHTS_FILE,
        "tried[w] = choose_penalty(fused, targets, masks, sources)",
        "tried[w] = choose_penalty(fused, targets, masks, torch.randperm(len(sources)) % 5)",
        WEIGHTS,
    ),
    Break(
        "fusion-chosen-not-set",
        "the model keeps the weights of the last candidate",
        WEIGHTS_FILE,
        "    fusion.set_weights(w)\n    return",
        "    return",
        WEIGHTS,
    ),
    Break(
        "teacher-columns",
        "the teacher's classes are taken in its own order",
        "xfer/transfer/teacher.py",
        ".float()[:, self.columns]",
        ".float()",
        ("tests/xfer/transfer/test_teacher.py",),
    ),
    Break(
        "soup-of-all",
        "every run is averaged in",
        "xfer/soup.py",
        "if _accuracy(tried) >= _accuracy(row):",
        "if True:",
        SOUP,
    ),
    Break(
        "soup-of-any-start",
        "runs that began with other weights are averaged",
        "xfer/soup.py",
        "if one.start != first.start:",
        "if False:",
        SOUP,
    ),
    Break(
        "soup-statistics-averaged",
        "a soup keeps the mean of its runs' BatchNorm statistics",
        "xfer/soup.py",
        "        norm.reset_running_stats()\n        norm.momentum = None",
        "        norm.momentum = 0.0",
        SOUP,
    ),
    Break(
        "probe-left-out",
        "a run with pretrained branches starts with a random head",
        "xfer/begin.py",
        "    _start_as_probe(recipe, data, cache or features_folder(recipe))\n",
        "",
        PROBE,
    ),
    Break(
        "probe-batchnorm",
        "BatchNorm of the projection does not know the maps it gets",
        "xfer/transfer/probe.py",
        "    norm.running_mean.copy_(w @ seen.mean)\n",
        "",
        PROBE,
    ),
    Break(
        "probe-unturned",
        "too few channels keep the first of the branch's instead of what varies most",
        "xfer/transfer/probe.py",
        "    if width >= c:\n        return torch.eye(c)\n",
        "    return torch.eye(c)[:width]\n",
        PROBE,
    ),
    Break(
        "staged-at-once",
        "every stage trains all layers",
        STAGES_FILE,
        "DEPTHS[min(depth, number + 1)]",
        "DEPTHS[depth]",
        STAGES,
    ),
    Break(
        "staged-batchnorm",
        "BatchNorm's statistics move in every stage",
        STAGES_FILE,
        "        if number < count - 1:\n",
        "        if False:\n",
        STAGES,
    ),
    Break(
        "staged-one-rate",
        "every stage has the rate of the first",
        STAGES_FILE,
        "recipe.transfer.stage_rate**number",
        "1",
        STAGES,
    ),
    Break(
        "features-other-weights",
        "features of other weights are taken from the cache",
        "xfer/transfer/features.py",
        '            "weights": weights,\n',
        "",
        FEATURES,
    ),
    Break(
        "features-other-data",
        "features of other samples are taken from the cache",
        "xfer/transfer/features.py",
        "self.subset.identity(),",
        "self.subset.name,",
        FEATURES,
    ),
    Break(
        "features-again",
        "the last image that is kept is seen again in place of the next one",
        "xfer/transfer/features.py",
        "[-1]))[0]) + 1",
        "[-1]))[0])",
        FEATURES,
    ),
    Break(
        "logme-one-step",
        "LogME stops after its first step",
        TRANSFERABILITY_FILE,
        "for _ in range(_ITERATIONS):",
        "for _ in range(1):",
        TRANSFERABILITY,
    ),
    Break(
        "h-score-not-shrunk",
        "the H-score of few samples of many features is what it is of noise",
        TRANSFERABILITY_FILE,
        "ledoit_wolf(f) if shrinkage is None",
        "0.0 if shrinkage is None",
        TRANSFERABILITY,
    ),
    Break(
        "own-neighbour",
        "each image is its own nearest neighbour",
        TRANSFERABILITY_FILE,
        "        if among_themselves:\n",
        "        if False:\n",
        TRANSFERABILITY,
    ),
    Break(
        "own-data-scored",
        "a source is scored on other images of its own data set",
        "xfer/transfer/pairs.py",
        " and not pair.same",
        "",
        SUITED,
    ),
    Break(
        "lacking-classes-favoured",
        "images of classes that a source lacks do not count against it",
        "xfer/transfer/pairs.py",
        " * pair.shared / pair.images",
        "",
        SUITED,
    ),
    Break(
        "from-untaken",
        "model.from leaves the projections as they were",
        "xfer/transfer/source.py",
        'for kind in ("branches", "projections")]',
        'for kind in ("branches",)]',
        SOURCE,
    ),
    Break(
        "head-rows-in-order",
        "kept rows of the head are taken by place and not by name",
        "xfer/transfer/head.py",
        "            place = source.classes.index(name)\n",
        "            place = row % len(source.classes)\n",
        (f"{HEAD}::test_new_classes_stand_beside_the_old_ones_and_old_test_data_is_scored_on",),
    ),
    Break(
        "head-decays",
        "weight decay shrinks kept rows of classes that no source has",
        "xfer/engine.py",
        'decay_head=recipe.transfer.head == "fit"',
        "decay_head=True",
        (f"{HEAD}::test_training_moves_no_row_that_no_source_has",),
    ),
    Break(
        "head-from-zero",
        "the probe fits kept rows from zero",
        "xfer/transfer/linear.py",
        "before = torch.nn.functional.linear(features, *start) if start else 0",
        "before = 0",
        HEAD_FIT,
    ),
    Break(
        "unasked-answers",
        "the penalty is chosen among classes that no sample is of",
        "xfer/transfer/linear.py",
        ".masked_fill(unasked, -torch.inf)",
        "",
        HEAD_FIT,
    ),
    Break(
        "unfold-off",
        "BatchNorm of a packed model does not learn its statistics",
        "xfer/transfer/source.py",
        "        unfold(model, [part.own for part in packed], images)\n",
        "        pass\n",
        SOURCE,
    ),
    Break(
        "branch-other",
        "weights FOLDER:BRANCH takes the first branch of the folder",
        "xfer/transfer/source.py",
        "    theirs = theirs or next(iter(there))\n",
        "    theirs = next(iter(there))\n",
        BRANCH,
    ),
    Break(
        "quant-unfolded",
        "transfer.mode: quant rounds a packed source again",
        "xfer/begin.py",
        "images = None if packed else calibration_images",
        "images = calibration_images",
        QUANT_MODE,
    ),
    Break(
        "chain-forgotten",
        "a run forgets what the model it began with was trained on",
        "xfer/begin.py",
        "*entries(data.train), *inherited(recipe)]",
        "*entries(data.train)]",
        LEAKS,
    ),
    Break(
        "cuts-forgotten",
        "what was cut out of a source counts as trained on",
        "xfer/trained_on.py",
        "return replace(like, filters=_filters(entry))",
        "return replace(like, filters=())",
        LEAKS,
    ),
    Break(
        "penalty-worst",
        "the penalty that does worst on what is left out is taken",
        "xfer/transfer/linear.py",
        "    best = max(means,",
        "    best = min(means,",
        PROBE,
    ),
    Break(
        "size-of-the-weights",
        "images have the default size, whatever the weights were made at",
        "xfer/config.py",
        "else made_at(self.model)",
        "else None",
        ("tests/xfer/test_image_size.py",),
    ),
)
