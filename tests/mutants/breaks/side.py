"""Breaks of side inputs: their table, their encoders, the modulation, the leak probe."""

from tests.mutants.broken import Break

TABLE = ("tests/shards/sources/test_side.py",)
MODULE = ("tests/xfer/test_side.py",)
LEARNED = ("tests/xfer/transfer/test_side.py",)
RUNS = ("tests/xfer/test_side_runs.py",)

BREAKS = (
    Break(
        "row-of-two-images",
        "a row of a table of side inputs is given to every image of its name",
        "shards/sources/side.py",
        "                if other != image:\n",
        "                if False:\n",
        TABLE,
    ),
    Break(
        "film-not-zero",
        "side inputs change what a model says before they are trained",
        "xfer/side.py",
        "        nn.init.zeros_(self.film.weight)\n",
        "",
        MODULE,
    ),
    Break(
        "unknown-is-first",
        "a value that training did not have counts as the most frequent one",
        "xfer/side.py",
        "places.get(hash_of(value_text(one)), torch.nan) if one",
        "places.get(hash_of(value_text(one)), 0.0) if one",
        MODULE,
    ),
    Break(
        "class-in-the-text",
        "names of classes stay in texts",
        "xfer/side.py",
        'if hash_of("".join(found[at : at + count])) in names), 0)',
        'if hash_of("".join(found[at : at + count])) in names and False), 0)',
        MODULE,
    ),
    Break(
        "side-always-seen",
        "no training sample is seen without side inputs",
        "xfer/run.py",
        "        batches = dropping(batches, recipe.model.side.dropout, recipe.data.seed)\n",
        "        batches = dropping(batches, 0.0, recipe.data.seed)\n",
        RUNS,
    ),
    Break(
        "dropout-by-batch",
        "which samples are seen without depends on how the stream is cut",
        "xfer/side.py",
        "np.uint64), positions))[:, 0]",
        "np.uint64), positions - positions[0]))[:, 0]",
        MODULE,
    ),
    Break(
        "leak-ignored",
        "a field that is the class is trained on",
        "xfer/transfer/side.py",
        "    if leak.value > config.leak_limit:\n",
        "    if False:\n",
        LEARNED,
    ),
    Break(
        "leak-by-heart",
        "the leak probe is scored on what it was fitted on",
        "xfer/transfer/side.py",
        "            weight, bias = fit_linear(features[~inside], targets[~inside], masks[~inside], penalty)\n",
        "            weight, bias = fit_linear(features, targets, masks, penalty)\n",
        LEARNED,
    ),
    Break(
        "chosen-by-images-alone",
        "the best checkpoint is that of images alone",
        "xfer/history.py",
        "row.get(WITH_SIDE) or measured(row)) for row",
        "measured(row)) for row",
        RUNS,
    ),
)
