"""Breaks of folding, bits, packing and bundles."""

from tests.mutants.broken import Break

QUANT_MODE = ("tests/xfer/transfer/test_quant.py",)
QUANT = ("tests/xfer/quant",)

BREAKS = (
    Break(
        "foreign-folder-replaced",
        "quantize --out takes any folder for a bundle",
        "xfer/bundle.py",
        "    if there and not is_bundle(folder):\n",
        "    if False:\n",
        ("tests/xfer/test_cli.py",),
    ),
    Break(
        "correction-never-called",
        "quantize.correct changes nothing",
        "xfer/quantize.py",
        "    if config.correct and quantized.codes:\n",
        "    if False:\n",
        ("tests/xfer/test_quantize.py",),
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
    Break(
        "timm-activation",
        "folding a BatchNorm of timm loses the activation inside it",
        "xfer/quant/fold.py",
        'getattr(folded.get_submodule(bn_name), "act", nn.Identity())',
        "nn.Identity()",
        ("tests/xfer/quant/test_fold.py",),
    ),
    Break(
        "kept-scales-lost",
        "a layer's scales are found again from its weight alone",
        "xfer/quant/keep.py",
        "one.scale.clone() if one else ones)",
        "found[name].weight.flatten(1).abs().amax(1) / (2 ** (one.bits - 1) - 1) if one else ones)",
        QUANT_MODE,
    ),
    Break(
        "gain-not-in-the-card",
        "a bundle's card does not say what training gained over the probe",
        "xfer/quantize.py",
        "        *gain_markdown(trained.path),\n",
        "",
        ("tests/tuning/test_gain.py",),
    ),
    Break(
        "gain-of-another-run",
        "a search in which each trial trains says the gain of the run in its job",
        "tuning/record.py",
        "return trial_run(folder, best) if needs_training(study.space) else study.job.recipe.folder",
        "return study.job.recipe.folder",
        ("tests/tuning/test_gain.py",),
    ),
)
