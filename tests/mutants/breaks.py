"""The breaks: in which file, what is said otherwise, and which tests have to see it.

Each is a fault that was made once or would be easy to make: a key that is ignored, a step left out, a sign turned. The
text to replace stands exactly once in its file, so a break that the code has outgrown is an error and not a pass.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """`old` becomes `new` in `file`; `tests` (files or node ids) must fail then. `what` says it in words."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, text: str) -> str:
        """The broken text. Raises ValueError unless `old` stands in it exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {text.count(self.old)} times in {self.file}, not once")
        return text.replace(self.old, self.new)


ENGINE, TRAIN, RUN = "xfer/engine.py", "xfer/train.py", "xfer/run.py"
FIT = ("tests/xfer/test_fit.py",)
KEYS = ("tests/xfer/test_train_keys.py",)
FUSIONS = ("tests/xfer/test_fusions.py",)
MODEL = ("tests/xfer/test_model.py",)
QUANT = ("tests/xfer/quant",)

BREAKS = (
    # the loop and its engines
    Break(
        "eval-mode",
        "evaluation leaves the model in training mode",
        "xfer/evaluate.py",
        "    model.eval()\n",
        "    pass\n",
        KEYS,
    ),
    Break("bf16-ignored", "train.precision: bf16 changes nothing", ENGINE, "enabled=self.bf16", "enabled=False", KEYS),
    Break(
        "clip-ignored",
        "train.clip_norm changes nothing",
        ENGINE,
        "        if self.clip_norm:\n",
        "        if False:\n",
        KEYS,
    ),
    Break(
        "momentum-ignored",
        "train.momentum changes nothing",
        ENGINE,
        "lr=rate, momentum=momentum, nesterov=momentum > 0",
        "lr=rate, momentum=0.9, nesterov=True",
        KEYS,
    ),
    Break(
        "decay-on-norms",
        "weight decay on norms and biases too",
        ENGINE,
        '"weight_decay": 0.0}',
        '"weight_decay": weight_decay}',
        KEYS,
    ),
    Break(
        "decay-ignored",
        "train.weight_decay changes nothing",
        ENGINE,
        '"weight_decay": weight_decay}',
        '"weight_decay": 5e-4}',
        KEYS,
    ),
    Break(
        "optimizer-ignored", "train.optimizer: adamw is SGD", ENGINE, 'if kind == "adamw":', 'if kind == "adam":', KEYS
    ),
    Break(
        "accumulation-steps-early",
        "every micro-batch moves the weights",
        ENGINE,
        "if self._pending < self.accumulation:",
        "if False:",
        FIT,
    ),
    Break(
        "optimizer-not-resumed",
        "a resume forgets the momentum",
        RUN,
        "engine.load_optimizer(checkpoint.optimizer(), state.step)",
        "pass",
        FIT,
    ),
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
        "no-class-is-first",
        "a sample without a class counts as one of the first",
        "xfer/labels.py",
        "torch.where(valid & (targets >= 0), loss, 0)",
        "torch.where(valid, loss, 0)",
        ("tests/xfer/test_labels.py",),
    ),
    Break("warmup-ignored", "train.warmup changes nothing", TRAIN, "    if step < warmup:\n", "    if False:\n", KEYS),
    Break(
        "rate-never-set",
        "the learning rate stays where it began",
        TRAIN,
        "        engine.set_learning_rate(rate)\n",
        "",
        KEYS,
    ),
    Break(
        "batchnorm-always-frozen",
        "BatchNorm is frozen whatever the key says",
        TRAIN,
        "    if freeze_batchnorm:\n",
        "    if True:\n",
        KEYS,
    ),
    Break(
        "batchnorm-never-frozen",
        "train.freeze_batchnorm changes nothing",
        TRAIN,
        "    if freeze_batchnorm:\n",
        "    if False:\n",
        FIT,
    ),
    Break(
        "share-not-batch",
        "the loss is divided by the share, not by the global batch",
        TRAIN,
        "micro.valid) / global_batch",
        "micro.valid) / len(micro)",
        FIT,
    ),
    Break(
        "diverged-goes-on",
        "a loss that is not finite goes on",
        TRAIN,
        "if not math.isfinite(mean):",
        "if False:",
        ("tests/xfer/test_diverged.py",),
    ),
    Break(
        "scored-before-saved",
        "a damaged evaluation image costs the checkpoint",
        TRAIN,
        "    if saving:\n        run.record.save(state)\n    if scoring:\n",
        "    if saving and not scoring:\n        run.record.save(state)\n    if scoring:\n",
        FIT,
    ),
    # the model
    Break(
        "wsum-norm",
        "the weighted sum does not keep the variance",
        "xfer/fusion.py",
        "    w = w / w.norm(dim=0)\n",
        "",
        FUSIONS,
    ),
    Break(
        "gate-ignores-alpha",
        "the gate forgets the weight vector",
        "xfer/fusion.py",
        "self.alpha[:, None] + self.gamma, features",
        "self.gamma, features",
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
        "            part.requires_grad_(False)\n",
        "            pass\n",
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
    # scores and checkpoints
    Break(
        "interval-of-zero",
        "intervals have no width",
        "xfer/metrics.py",
        "half = z / (1 + z * z / n)",
        "half = 0 * z / (1 + z * z / n)",
        ("tests/xfer/test_intervals.py",),
    ),
    Break(
        "padding-counted",
        "padding counts as samples",
        "xfer/metrics.py",
        "valid = valid & (targets >= 0)",
        "valid = targets >= 0",
        ("tests/xfer/test_metrics.py", "tests/xfer/test_cli.py"),
    ),
    Break(
        "damage-unseen",
        "a damaged checkpoint is taken for whole",
        "xfer/checkpoint.py",
        "elif describe_file(path) != expected:",
        "elif False:",
        ("tests/xfer/test_checkpoint.py",),
    ),
    Break(
        "keep-ignored",
        "old checkpoints are never removed",
        "xfer/checkpoint.py",
        "[:-keep]",
        "[:0]",
        ("tests/xfer/test_checkpoint.py",),
    ),
    Break(
        "foreign-folder-replaced",
        "quantize --out takes any folder for a bundle",
        "xfer/bundle.py",
        "    if there and not is_bundle(folder):\n",
        "    if False:\n",
        ("tests/xfer/test_cli.py",),
    ),
    # quantization
    Break(
        "correction-never-called",
        "quantize.correct changes nothing",
        "xfer/quantize.py",
        "    if config.correct:\n",
        "    if False:\n",
        ("tests/xfer/test_quantize.py",),
    ),
    Break(
        "paired-interval-of-zero",
        "the interval of a difference has no width",
        "xfer/metrics.py",
        "half = 1.96 * math.sqrt((up",
        "half = 0.0 * math.sqrt((up",
        ("tests/xfer/test_intervals.py",),
    ),
    Break(
        "calibration-ignored",
        "quantize.calibration changes nothing",
        "xfer/quantize.py",
        "recipe.quantize.calibration)",
        "64)",
        ("tests/xfer/test_quantize.py",),
    ),
    Break(
        "not-finite-packed",
        "a model that is not finite is packed",
        "xfer/quantize.py",
        "    check_sound(model, calibration[0][:4])\n",
        "",
        ("tests/xfer/test_quantize.py",),
    ),
    Break(
        "fold-sees-the-source",
        "a fold is trained on the source it leaves out",
        "xfer/folds.py",
        '"data.validation": [source]',
        '"data.validation": 0.1',
        ("tests/xfer/test_folds.py",),
    ),
    Break(
        "groups-ignored",
        "quantize.groups changes nothing",
        "xfer/quantize.py",
        "{**config.groups}",
        "{}",
        ("tests/xfer/test_quantize.py",),
    ),
    Break(
        "stream-bit-order",
        "codes are packed from the high bits on",
        "xfer/quant/stream.py",
        "words << _steps(8, bits)",
        "words << _steps(8, bits).flip(0)",
        QUANT,
    ),
    # order and data
    Break(
        "share-not-by-lane",
        "ranks take any samples, not neighbouring lanes",
        "shards/order/order.py",
        'np.argsort(lane, kind="stable")',
        "np.arange(len(lane))",
        ("tests/shards/order/test_order.py",),
    ),
    Break(
        "epoch-not-in-key",
        "every epoch has the same order",
        "shards/order/order.py",
        "fold(self._keys[source], epoch, lane, j)",
        "fold(self._keys[source], 0 * epoch, lane, j)",
        ("tests/shards/order/test_order.py",),
    ),
    Break(
        "counters-shuffled",
        "a source begins its next epoch before this one is over",
        "shards/order/blend.py",
        "        return sources, in_order\n",
        "        return sources, counts\n",
        ("tests/shards/order/test_order.py",),
    ),
    Break(
        "crc-unchecked",
        "a flipped bit reaches the model",
        "shards/loading/reader.py",
        "if zlib.crc32(span) != crc32:",
        "if False:",
        ("tests/shards/loading/test_damage.py",),
    ),
    Break(
        "validation-trained-on",
        "the held-out part is trained on too",
        "shards/loading/open.py",
        "((share, 1), (0, share))",
        "((0, 1), (0, share))",
        ("tests/shards/loading/test_validation.py",),
    ),
    Break(
        "held-source-trained-on",
        "a source held out whole is trained on too",
        "shards/loading/open.py",
        "            validation.append(subset)\n            continue\n",
        "            validation.append(subset)\n",
        ("tests/shards/loading/test_validation.py",),
    ),
    Break(
        "stored-order",
        "few samples come in stored order",
        "shards/loading/few.py",
        "mix_array(subset.key_hashes() ^ _SALT)",
        "np.arange(subset.num_samples)",
        ("tests/shards/loading/test_few.py",),
    ),
    Break(
        "strict-ignored",
        "data.strict changes nothing",
        "shards/loading/train.py",
        "{} if config.strict else ",
        "",
        ("tests/shards",),
    ),
    # clusters and searches
    Break(
        "capacity-of-all",
        "capacity counts what others hold",
        "cluster/capacity.py",
        "while room(free(), config.resources)",
        "while room(total(), config.resources)",
        ("tests/cluster/test_session.py",),
    ),
    Break(
        "failed-chosen",
        "a failed trial can be chosen",
        "tuning/pareto.py",
        "row.error is None and row.in_space]",
        "row.in_space]",
        ("tests/tuning/test_space.py",),
    ),
    Break(
        "tolerance-ignored",
        "search.tolerance changes nothing",
        "tuning/pareto.py",
        "accuracy - tolerance - ROUNDING",
        "accuracy - ROUNDING",
        ("tests/tuning",),
    ),
    Break(
        "refit-off",
        "the head is not fitted to new fusion weights",
        "tuning/trial.py",
        "        refit_head(model, shared)\n",
        "        pass\n",
        ("tests/tuning/test_trial.py",),
    ),
)
