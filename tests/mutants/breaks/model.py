"""Breaks of branches, fusion and the masked loss."""

from tests.mutants.broken import Break

BRANCH = ("tests/xfer/transfer/test_branches.py",)
KEYS = ("tests/xfer/test_train_keys.py",)
FUSIONS = ("tests/xfer/test_fusions.py",)
MODEL = ("tests/xfer/test_model.py",)

BREAKS = (
    Break(
        "smoothing-ignored",
        "train.label_smoothing changes nothing",
        "xfer/labels.py",
        "    if smoothing:\n",
        "    if False:\n",
        KEYS,
    ),
    Break(
        "mask-ignored",
        "the loss is over all classes",
        "xfer/labels.py",
        "logits.float().masked_fill(~masks, -torch.inf)",
        "logits.float()",
        ("tests/xfer/test_labels.py",),
    ),
    Break(
        "teacher-unheard",
        "train.teacher changes nothing",
        "xfer/labels.py",
        "        if self.teacher:\n",
        "        if False:\n",
        ("tests/xfer/transfer/test_teacher.py",),
    ),
    Break(
        "mixed-with-one-label",
        "an image that others were mixed into counts as its own class alone",
        "xfer/labels.py",
        "        if batch.own_share is not None:\n",
        "        if False:\n",
        ("tests/xfer/test_labels.py",),
    ),
    Break(
        "no-class-is-first",
        "a sample without a class counts as one of the first",
        "xfer/labels.py",
        "torch.where(batch.valid & (batch.targets >= 0), loss, 0)",
        "torch.where(batch.valid, loss, 0)",
        ("tests/xfer/test_labels.py",),
    ),
    Break(
        "shift-by-softmax",
        "an attention or a gate by image at 0 is the weighted sum but for rounding",
        "xfer/fusion.py",
        "factor = growth * _norm(w) / _norm([one * by for one, by in zip(w, growth, strict=True)])",
        "factor = growth * 1.0000001 * _norm(w) / _norm([one * by for one, by in zip(w, growth, strict=True)])",
        FUSIONS,
    ),
    Break(
        "weight-0-has-a-say",
        "a branch of weight 0 moves what a gate says of the others",
        "xfer/fusion.py",
        "for z in features]).where(there, 0)",
        "for z in features])",
        FUSIONS,
    ),
    Break(
        "late-fitted-as-concat",
        "the classifiers of a late fusion are fitted together",
        "xfer/fusion.py",
        "    if isinstance(fusion, Late):\n",
        "    if False:\n",
        FUSIONS,
    ),
    Break(
        "wsum-norm",
        "the weighted sum does not keep the variance",
        "xfer/fusion.py",
        "    return w / w.norm(dim=0)\n",
        "    return w\n",
        FUSIONS,
    ),
    Break(
        "gate-ignores-alpha",
        "the gate forgets the weight vector",
        "xfer/fusion.py",
        "self.alpha[:, None] + self.gamma)",
        "self.gamma)",
        FUSIONS,
    ),
    Break(
        "frozen-stage-moves",
        "BatchNorm of a frozen stage moves",
        "xfer/backbone.py",
        "            part.eval()\n",
        "            pass\n",
        MODEL,
    ),
    Break(
        "frozen-stage-trains",
        "a frozen stage is trained",
        "xfer/backbone.py",
        "STAGES.index(train_from) if frozen is None else frozen",
        "-1",
        MODEL,
    ),
    Break(
        "seed-ignored",
        "the initial weights ignore train.seed",
        "xfer/model.py",
        "torch.manual_seed(seed)",
        "torch.manual_seed(0)",
        MODEL,
    ),
    Break(
        "stem-side",
        "a small stem's maps are taken for those of the other",
        "xfer/backbone.py",
        '2 ** (level - 2) if stem == "small" else 2**level',
        "2**level",
        BRANCH,
    ),
)
