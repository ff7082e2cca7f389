"""A hash survives copying, and that of another picture is another one; near words are all found."""

import numpy as np
import pytest
from PIL import Image

from shards.inspect.dups import near
from shards.inspect.dups.near import ENOUGH, find_near, num_sorts
from shards.inspect.dups.perceptual_hash import comparable, distances, mirrored, take_hash
from tests.shards.scenes import COPIES, file_of, mirror, scene


def hashes(files) -> np.ndarray:
    return np.stack([take_hash(data) for data in files])


def far_apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(distances(a, b).max())


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_has_nearly_the_same_print(copy):
    scenes = [scene(seed) for seed in range(20)]
    found = distances(hashes(map(file_of, scenes)), hashes(map(COPIES[copy], scenes)))
    assert found.max() < (0.2 if copy == "without its rim" else 0.06)


def test_other_pictures_differ_in_about_half_of_all_signs():
    some, others = (hashes(file_of(scene(seed)) for seed in range(first, first + 60)) for first in (0, 100))
    for turned in (others, mirrored(others)):
        found = distances(some, turned)
        assert found.min() > 0.35
        assert abs(found.mean() - 0.5) < 0.02


def test_the_print_of_a_mirrored_picture_is_known_without_looking_at_it():
    scenes = [scene(seed, width=121) for seed in range(10)]
    turned = hashes(file_of(mirror(image), "PNG") for image in scenes)
    assert far_apart(mirrored(hashes(file_of(image, "PNG") for image in scenes)), turned) < 0.02
    assert far_apart(mirrored(mirrored(turned)), turned) == 0


def test_an_orientation_tag_makes_no_other_picture():
    image, exif = scene(3), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    lying = image.transpose(Image.Transpose.ROTATE_90)
    assert far_apart(hashes([file_of(lying, exif=exif)]), hashes([file_of(image)])) < 0.02


def test_pictures_with_nothing_in_them_are_near_to_nothing():
    ramp = np.tile(np.arange(120, dtype=np.uint8)[None, :, None], (96, 1, 3))
    grain = np.random.default_rng(0).normal(128, 2, (96, 120, 3)).astype(np.uint8)
    empty = [Image.new("RGB", (120, 96), colour) for colour in ("white", "navy")]
    flat = hashes(file_of(image) for image in (*empty, Image.fromarray(ramp), Image.fromarray(grain), scene(0, 8, 8)))
    assert not comparable(flat).any()
    assert np.isinf(distances(flat[:, None], flat[None])).all()
    assert flat["pixels"].any(axis=1).all(), "they can be compared by their pixels"
    assert comparable(hashes([file_of(scene(0))])).all()


def test_symmetric_pictures_are_not_near_for_what_both_lack():
    """Half of their signs say nothing; if these counted as equal, few of the others would have to be."""
    halves = [np.asarray(scene(seed, 60, 96)) for seed in range(40)]
    whole = hashes(file_of(Image.fromarray(np.concatenate([half, half[:, ::-1]], 1)), "PNG") for half in halves)
    found = distances(whole[:, None], whole[None])[~np.eye(40, dtype=bool)]
    assert found.min() > 0.3
    assert far_apart(whole, mirrored(whole)) < 0.02
    assert not (mirrored(whole)["signs"] & ~whole["known"]).any(), "unknown signs are 0 however it is turned"


@pytest.mark.parametrize("most", [0, 1, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 700, 3000])
def test_all_near_words_are_found_and_each_pair_once(most, count):
    rng = np.random.default_rng(count)
    words = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = count // 3
    words[count - copies :] = words[:copies]
    for n in range(count - copies, count):
        for bit in rng.integers(0, 64, n % (most + 3)):
            words[n] ^= np.uint64(1) << np.uint64(bit)
    rounds = []
    found = find_near(words, most, lambda a, b: np.ones(len(a), bool), rounds.append)
    expected = np.argwhere(np.triu(np.bitwise_count(words[:, None] ^ words[None]) <= most, 1))
    assert sorted(zip(found.a.tolist(), found.b.tolist(), strict=True)) == [tuple(pair) for pair in expected.tolist()]
    assert not found.crowded.any()
    assert len(rounds) == num_sorts(count, most)


def test_what_the_judge_refuses_is_no_pair():
    words = np.zeros(20, np.uint64)
    found = find_near(words, 4, lambda a, b: (a + b) % 7 == 0)
    pairs = set(zip(found.a.tolist(), found.b.tolist(), strict=True))
    assert pairs == {(a, b) for b in range(20) for a in range(b) if (a + b) % 7 == 0}


@pytest.mark.parametrize("steps", [near._STEPS, 3])
def test_a_crowd_costs_no_square_of_it_and_hides_no_one(steps, monkeypatch):
    """5,000 equal words are 12 million pairs; a word outside the crowd still finds its own partner."""
    monkeypatch.setattr(near, "_STEPS", steps)
    words = np.zeros(5000, np.uint64)
    words[17] = words[4711] = np.uint64(0xFFFF_FFFF_0000)
    found = find_near(words, 8, lambda a, b: np.ones(len(a), bool))
    assert len(found.a) < 4 * ENOUGH * len(words)
    assert (17, 4711) in set(zip(found.a.tolist(), found.b.tolist(), strict=True))
    partners = np.bincount(np.concatenate([found.a, found.b]), minlength=5000)
    crowd = np.setdiff1d(np.arange(5000), [17, 4711])
    assert partners[crowd].min() >= ENOUGH
    assert found.crowded[crowd].all()
    assert not found.crowded[[17, 4711]].any()
