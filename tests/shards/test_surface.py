"""`shards.open` as a script uses it: loaders with resumable states, one numbering of classes, samples to look at."""

import json
import subprocess
import sys
from itertools import islice

import pytest
import torch

import shards
from shards.loading.reader import read_sample
from shards.settings import ConfigError

SMALL = {"image_size": 24, "batch_size": 12, "workers": 0}


@pytest.fixture
def data(shards_root):
    return shards.open(
        {"paint": shards_root / "paint", "outline": shards_root / "outline"},
        test={"neon": shards_root / "neon"},
        **SMALL,
    )


def positions(batches):
    return [batch.positions[batch.valid].tolist() for batch in batches]


@pytest.mark.parametrize("package", ["shards", "xfer"])
def test_importing_a_package_needs_neither_torch_nor_ray_nor_deepspeed(package):
    code = f"import sys, {package}; dir({package}); print({{'torch', 'ray', 'deepspeed', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_target_is_a_place_in_the_classes_of_all_sources(data):
    assert data.classes == ("circle", "cross", "square", "star")
    batch = next(iter(data.train()))
    images, targets = batch
    assert images.dtype == torch.uint8
    assert images.shape == (12, 3, 24, 24)
    assert batch["images"] is images
    with pytest.raises(KeyError, match="positions"):
        batch["image"]
    assert targets.max() <= 3
    for loader, split in ((data.validation(), data._splits.validation), (data.test(), data._splits.test)):
        named = [data.classes[t] for b in loader for t in b.targets[b.valid].tolist()]
        stored = [
            subset.manifest.classes[read_sample(subset.numbered(subset.manifest.classes), i).label]
            for subset in split
            for i in range(subset.num_samples)
        ]
        assert named == stored


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_training_state_resumes_mid_pass_on_any_number_of_ranks(data, world_size):
    whole = positions(islice(data.train(), 6))
    with data.train(steps=4) as loader:
        passing = iter(loader)
        next(passing), next(passing), next(passing)
        state = json.loads(json.dumps(loader.state_dict()))
    ranks = []
    for rank in range(world_size):
        with data.train(rank, world_size, steps=4) as loader:
            loader.load_state_dict(state)
            assert loader.state_dict() == state, "a state that was loaded is the state"
            first, second = positions(loader), positions(islice(loader, 2))
            assert [len(first), len(second)] == [1, 2], "the rest of the pass, then a whole one"
            ranks.append(first + second)
    joined = [sorted(p for rank in ranks for p in rank[i]) for i in range(3)]
    assert joined[0] == sorted(whole[3])
    assert joined[1:] == [sorted(range(12 * i, 12 * i + 12)) for i in (4, 5)]


def test_an_endless_loader_goes_on_where_it_was_left_and_has_no_length(data):
    loader = data.train()
    assert positions(islice(loader, 2)) + positions(islice(loader, 1)) == positions(islice(data.train(), 3))
    with pytest.raises(TypeError):
        len(loader)
    assert len(data.train(steps=5)) == len(list(data.train(steps=5))) == 5


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_validation_state_follows_the_conventions_of_torchdata(data, taken):
    loader = data.validation()
    whole = positions(loader)
    assert len(loader) == len(whole) == 2
    assert positions(data.validation()) == whole, "iterating again begins again"
    passing = iter(loader)
    list(islice(passing, taken))
    state = json.loads(json.dumps(loader.state_dict()))
    other = data.validation()
    other.load_state_dict(state)
    assert positions(other) == whole[taken:]
    assert positions(other) == whole, "a loaded state counts once"
    list(passing)
    other.load_state_dict(loader.state_dict())
    assert positions(other) == whole, "the state after a whole pass begins a new one"


def test_a_state_of_other_data_is_refused(data, shards_root):
    other = shards.open({"paint": shards_root / "paint"}, **SMALL)
    with pytest.raises(shards.ConfigError, match="outline"):
        other.train().load_state_dict(data.train().state_dict())
    with pytest.raises(shards.ConfigError, match="outline"):
        other.validation().load_state_dict(data.validation().state_dict())


def test_a_source_is_a_sequence_of_decoded_samples(data):
    source = data["paint"]
    assert len(source) == 90, "those held out among them"
    example = source[3]
    assert example.image.shape == (3, 40, 40)
    assert data.classes[example.target] == example.label
    assert source[-1].key == source[89].key
    assert [one.key for one in source[2:6:2]] == [source[2].key, source[4].key]
    with pytest.raises(IndexError, match="90"):
        source[90]
    with pytest.raises(KeyError, match="outline"):
        data["photo"]
    assert set(data) == {"paint", "outline", "neon"}
    for shown in (data, source, example, data.train(), data.validation(), next(iter(data.validation()))):
        assert len(repr(shown)) < 200
    assert "paint: 90" in repr(data)


def test_all_faults_come_in_one_message(shards_root, tmp_path):
    with pytest.raises(shards.ConfigError) as caught:
        shards.open({"paint": shards_root / "paint"}, image_size=2, batchsize=3)
    assert "image_size" in str(caught.value)
    assert "batch_size" in str(caught.value)
    with pytest.raises(shards.ConfigError) as caught:
        shards.open({"a": tmp_path / "a", "b": tmp_path / "b"})
    assert len(caught.value.faults) == 2
    with pytest.raises(shards.ConfigError, match="ranks"):
        shards.open({"paint": shards_root / "paint"}, batch_size=2).train(0, 3)


def test_a_recipe_a_section_and_a_mapping_open_the_same(data, recipe_values, tmp_path):
    section = recipe_values["data"] | SMALL | {"validation": 0.1}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"data": section}))
    want = positions(islice(data.train(), 2))
    assert positions(islice(shards.open(path).train(), 2)) == want
    assert positions(islice(shards.open(section).train(), 2)) == want
    assert positions(islice(shards.open(data.config).train(), 2)) == want


def test_a_folder_without_a_name_and_what_is_no_source(shards_root):
    with pytest.raises(ConfigError, match=r'a folder needs a name: shards.open\({"paint": '):
        shards.open(shards_root / "paint")
    for given in ([str(shards_root / "paint")], None):
        with pytest.raises(ConfigError, match=f"sources: must be folders by name, .* got {type(given).__name__}"):
            shards.open(given)
