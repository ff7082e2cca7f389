"""The head `labels`: its penalty, how it begins, and that everything a model goes through leaves it whole."""

import shutil
from typing import Any

import onnxruntime
import pytest
import torch
from torch.nn.functional import linear

import xfer
from shards.settings import ConfigError
from tests.xfer.command import status
from tests.xfer.transfer.test_probe import pooled
from xfer.bundle import open_model
from xfer.encoders import DIMS, ENCODERS, hash_ngram
from xfer.heads.label_table import COST, LabelTable, UnitLength
from xfer.model import build_model
from xfer.model_config import ModelConfig
from xfer.optimizer import hold_together
from xfer.surface import Run
from xfer.transfer import linear as fitted
from xfer.transfer.head import kept_rows
from xfer.transfer.linear import fit_linear

LABELS = {"model.head": {"kind": "labels", "delta_penalty": 0.5}}
CLASSES = ("circle", "cross", "square", "star")
EVERY = torch.ones(4, dtype=torch.bool)


def table(*names: str) -> LabelTable:
    made = LabelTable(len(names))
    made.vectors.copy_(hash_ngram(names))
    return made


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def shipped(shards_root, tmp_path_factory) -> Run:
    """A run that begins as its probe and is trained, and its bundle, whose head has 8 bits."""
    from safetensors.torch import save_file

    from xfer.backbone import Branch

    folder = tmp_path_factory.mktemp("labels")
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(3)
        save_file(Branch("resnet10").state_dict(), folder / "weights.safetensors")
        patch.setattr(fitted, "PENALTIES", (1e-2,))
        data = {"root": str(shards_root), "image_size": 32, "batch_size": 12, "workers": 0}
        values = {
            "name": "labels",
            "output": str(folder),
            "data": data | {"sources": {"paint": {"path": "paint"}, "outline": {"path": "outline"}}},
            "model": {"branches": {"only": {"backbone": "resnet10", "weights": str(folder / "weights.safetensors")}}},
            "train": {"steps": 2, "learning_rate": 1e-4, "select": "last"},
            "quantize": {"calibration": 16},
        }
        run = xfer.fit(values, LABELS, quiet=True)
        run.quantize(bits=32, groups={"head": 8})
    return run


@pytest.mark.parametrize("encode", ENCODERS.values())
def test_a_name_is_a_vector_of_length_1_and_the_same_whatever_it_stands_beside(encode):
    found = encode(("shirt", "T-Shirts", "sofa", "ß", "0"))
    assert found.shape == (5, DIMS)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(5))
    assert torch.equal(found, encode(("shirt", "T-Shirts", "sofa", "ß", "0", "zebra"))[:5])


def test_hash_ngram_knows_spelling_by_numbers_that_never_change():
    assert torch.equal(hash_ngram(("back_pack",)), hash_ngram(("Backpacks",)))
    cosines = hash_ngram(("shirt",)) @ hash_ngram(("t-shirt", "skirt", "sofa")).T
    assert cosines[0].tolist() == pytest.approx([0.6708, 0.2500, 0.0], abs=1e-3)
    (star,) = hash_ngram(("star",))
    assert star.nonzero()[:, 0].tolist() == [0, 36, 57, 75, 84, 114, 138, 176, 242]
    assert (3 * star[[0, 36, 57, 75, 84, 114, 138, 176, 242]]).tolist() == pytest.approx([1, 1, 1, -1, -1, 1, 1, 1, -1])
    # numbers that tell classes apart stay
    assert not torch.equal(*hash_ngram(("dog 01", "dog 02")))


@pytest.mark.parametrize("penalty", [0.02, 0.5, 100.0])
def test_the_pull_is_that_of_the_best_map_from_names_to_rows(penalty):
    """Half of V' P V is what Delta and A cost in the end, and its gradient is the penalty times Delta."""
    names = table("shirt", "t-shirt", "skirt", "sofa")
    rows, t = drawn(4, 8).double(), names.vectors.double()
    ridge = t.T @ t + COST / penalty * torch.eye(DIMS, dtype=torch.float64)
    best = torch.linalg.solve(ridge, t.T @ rows)
    delta = rows - t @ best
    cost = penalty / 2 * delta.square().sum() + COST / 2 * best.square().sum()
    pull = names.pull(penalty, EVERY).double()
    assert (rows * (pull @ rows)).sum() / 2 == pytest.approx(cost.item(), rel=1e-4)
    assert torch.allclose(pull @ rows, penalty * delta, atol=1e-4)


def test_the_more_it_costs_the_more_alike_are_rows_of_names_that_are_alike():
    x, masks = drawn(200, 8), torch.ones(200, 4, dtype=torch.bool)
    y = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
    names = table("shirt", "t-shirt", "sofa", "truck")
    apart = []
    for penalty in (0.0, 0.1, 100.0):
        pull = names.pull(penalty, EVERY)
        weight, _ = fit_linear(x, y, masks, 1e-3, pull=pull)
        like, unlike = (weight[0] - weight[1]).norm(), (weight[0] - weight[2]).norm()
        apart.append((like / unlike).item())
        if not penalty:
            assert torch.equal(weight, fit_linear(x, y, masks, 1e-3)[0]), "0 is an ordinary classifier"
    assert apart == sorted(apart, reverse=True)
    assert apart[2] < 0.8 * apart[0]


def test_two_classes_of_one_vector_are_held_together_and_untaught_ones_are_not_pulled():
    names = table("shirt", "Shirts", "sofa", "truck")
    names.vectors[1] = names.vectors[0]
    difference = torch.tensor([1.0, -1, 0, 0])
    assert torch.allclose(names.pull(2.0, EVERY) @ difference, 2 * difference, atol=1e-4)
    taught = torch.tensor([True, False, True, True])
    pull = names.pull(2.0, taught)
    assert not pull[1].any()
    assert not pull[:, 1].any()
    assert torch.equal(pull[taught][:, taught], table("shirt", "sofa", "truck").pull(2.0, torch.ones(3).bool()))


def test_step_0_scores_what_a_plain_probe_with_the_penalty_scores(pretrained, fast, capsys):
    run = xfer.fit(pretrained, LABELS | {"train.steps": 1}, quiet=True)
    assert "begins as a linear probe" in capsys.readouterr().err
    features, targets, _, masks = pooled(pretrained, "train")
    unit = UnitLength()
    # the projections keep the features but for a scale and a shift of each channel
    model = open_model(run.folder).model
    projected = model.projections["only"](features[:, :, None, None]).flatten(1).detach()
    pull = table(*CLASSES).pull(0.5, EVERY)
    weight, bias = fit_linear(unit(projected), targets, masks, 1e-2, pull=pull)
    held, truth, sources, _ = pooled(pretrained, "validation")
    held = unit(model.projections["only"](held[:, :, None, None]).flatten(1).detach())
    right = linear(held, weight, bias).argmax(1) == truth
    for number, name in enumerate(["outline", "paint"]):
        plain = right[sources == number].double().mean().item()
        assert run.metrics[0]["accuracy"][name] == pytest.approx(plain, abs=0.03)
    assert sum(run.metrics[0]["accuracy"].values()) / 2 > 0.33, "of four classes"


def test_the_penalty_changes_the_probe_and_the_training(pretrained, fast, monkeypatch):
    def rows(name: str, penalty: float) -> torch.Tensor:
        changes = {"model.head": {"kind": "labels", "delta_penalty": penalty}, "name": name}
        run = xfer.fit(pretrained, changes | {"train.learning_rate": 0.01}, quiet=True)
        return open_model(run.folder).model.head.weight.detach()

    free, held = rows("free", 0), rows("held", 5.0)
    assert (free - held).norm() > 0.01 * free.norm()
    monkeypatch.setattr("xfer.run.hold_together", lambda *arguments: None)
    assert not torch.equal(rows("probe", 5.0), held), "in training too"


def test_the_pull_adds_its_gradient_once_a_step():
    rows, pull = torch.nn.Parameter(drawn(4, 8)), table(*CLASSES).pull(0.5, EVERY)
    hold_together(rows, pull, accumulation=2)
    for _ in range(2):
        (rows * 3).sum().backward()
    assert rows.grad is not None
    assert torch.allclose(rows.grad, 6 + pull @ rows.detach())


def test_a_stopped_run_goes_on_to_the_bit(pretrained, fast):
    run = xfer.fit(pretrained, LABELS, quiet=True)
    whole, losses = open_model(run.folder).model.state_dict(), [row.get("losses") for row in run.metrics]
    shutil.rmtree(run.folder / "checkpoints" / "step-00000004")
    assert open_model(run.folder).path == run.folder
    run = xfer.fit(pretrained, LABELS, quiet=True)
    again = open_model(run.folder).model.state_dict()
    assert [row.get("losses") for row in run.metrics] == losses
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert torch.equal(whole["table.vectors"], hash_ngram(CLASSES))


def test_without_weights_the_table_is_of_the_names_too(recipe_values):
    run = xfer.fit(recipe_values, LABELS | {"train.steps": 1}, quiet=True)
    trained = open_model(run.folder)
    assert torch.equal(trained.model.state_dict()["table.vectors"], hash_ngram(trained.classes))


def test_a_bundle_says_what_its_rounded_run_says_and_is_evaluated(shipped, capsys):
    trained, bundle = open_model(shipped.folder), open_model(shipped.folder / "bundle")
    assert bundle.bits == {"head": 8}
    assert torch.equal(trained.model.state_dict()["table.vectors"], bundle.model.state_dict()["table.vectors"])
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = trained.model(images), bundle.model(images)
    assert (one - other).norm() < 0.2 * one.norm()
    assert status("evaluate", str(shipped.folder / "bundle")) == 0
    assert "accuracy" in capsys.readouterr().out


def test_an_image_that_is_darker_or_brighter_in_its_features_is_answered_alike():
    """A cosine: the length of the fused feature has no part."""
    config = {"branches": {"a": {"backbone": "resnet10"}}, "fusion": {"width": 16}, "head": {"kind": "labels"}}
    model = build_model(ModelConfig.model_validate(config), 5, seed=0).eval()
    features = drawn(3, 16)
    assert torch.allclose(model.classify([features]), model.classify([7 * features]), atol=1e-5)


def test_an_exported_file_gives_what_the_bundle_gives(shipped, tmp_path):
    file = tmp_path / "model.onnx"
    assert status("export", str(shipped.folder / "bundle"), str(file), "--onnx") == 0
    bundle = open_model(shipped.folder / "bundle")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (logits,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
        None, {"images": images.numpy()}
    )
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), bundle.model(images), atol=1e-3)


def test_kept_rows_stay_to_the_bit_and_a_new_class_begins_as_its_name_says(shipped, images, tmp_path, fast, capsys):
    from shards.ingest.build import build

    for theirs, ours in {"circle": "circle", "square": "squares big"}.items():
        shutil.copytree(images / "neon" / theirs, tmp_path / "renamed" / ours)
    build(tmp_path / "renamed", tmp_path / "shards", name="renamed", shard_mb=0.05, processes=1)
    values: dict[str, Any] = {
        "name": "more",
        "output": str(tmp_path),
        "data": {"sources": {"new": {"path": str(tmp_path / "shards")}}, "batch_size": 12, "workers": 0},
        "model": {"from": str(shipped.folder / "bundle")},
        "train": {"steps": 2, "learning_rate": 0.01, "weight_decay": 0.1},
        "transfer": {"head": "keep"},
    }
    with pytest.raises(ConfigError, match=r"model.head.kind: must be labels, as in .* got linear"):
        xfer.fit(values, quiet=True)
    run = xfer.fit(values, LABELS, quiet=True)
    ours, theirs = open_model(run.folder), open_model(shipped.folder / "bundle")
    kept = [name for name in CLASSES if name != "circle"]
    for name in kept:
        row, before = ours.classes.index(name), theirs.classes.index(name)
        assert torch.equal(ours.model.head.weight[row], theirs.model.head.weight[before])
        assert torch.equal(ours.model.head.bias[row], theirs.model.head.bias[before])
    assert "head, new    squares big: begin as their names say" in capsys.readouterr().err
    weight, bias = kept_rows(theirs, ours.classes, hash_ngram(ours.classes), 0.5)
    new, square = weight[ours.classes.index("squares big")], theirs.model.head.weight[theirs.classes.index("square")]
    assert torch.cosine_similarity(new, square, dim=0) > 0.5
    assert torch.equal(weight[ours.classes.index("square")], square)
    assert bias[ours.classes.index("squares big")] == pytest.approx(theirs.model.head.bias.mean().item())
    assert not kept_rows(theirs, ours.classes)[0][ours.classes.index("squares big")].any()


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ({"kind": "linear", "delta_penalty": 1}, "delta_penalty: must be left out for the head linear"),
        ({"kind": "fcos", "encoder": "hash-ngram"}, "encoder: must be left out for the head fcos"),
        ({"kind": "labels", "delta_penalty": -1}, "delta_penalty: must be at least 0, got -1"),
        ({"kind": "labels", "encoder": "words"}, "hash-ngram"),
    ],
)
def test_what_does_not_go_with_a_head_is_refused(recipe_values, head, fault):
    with pytest.raises(ConfigError, match=fault):
        xfer.fit(recipe_values, {"model.head": head}, quiet=True)


def test_late_fusion_and_a_step_too_far_are_refused(recipe_values):
    with pytest.raises(ConfigError, match=r"fusion.kind: must not be late for the head labels"):
        xfer.fit(recipe_values, LABELS | {"model.fusion.kind": "late"}, quiet=True)
    hard = {"model.head": {"kind": "labels", "delta_penalty": 50}, "train.learning_rate": 0.05}
    with pytest.raises(ConfigError, match=r"model.head.delta_penalty: must be at most 20 with .*rate 0.05, got 50"):
        xfer.fit(recipe_values, hard, quiet=True)
