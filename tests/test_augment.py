"""Augmentation: maps move with their image, what is outside is unknown, and chance is the generator's alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from torch.nn import functional

from geoseg.train.augment import Augmentation
from geoseg.train.losses import IGNORED, CrossEntropy, Dice, total_loss

CHANCES = [name for name, field in Augmentation.model_fields.items() if "probability" in str(field.description)]
OFF = dict.fromkeys(CHANCES, 0.0)
MIXES = ["cutmix", "copy_paste", "mixup"]
MOVES = ["flip", "quarter_turn", "affine", "elastic"]
DATES = ["swap", "repeat"]
COLOURS = [name for name in CHANCES if name not in [*MIXES, *MOVES, *DATES, "missing"]]


def only(**changes: Any) -> Augmentation:
    return Augmentation(**{**OFF, **changes})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(bands: int = 3, shape: tuple[int, int] = (40, 40), seed: int = 0) -> tuple[torch.Tensor, dict]:
    """A sample: blotches of colour, with labels 0 to 2 and some unknown, and the other kinds of maps."""
    rng = np.random.default_rng(seed)
    blotches = ndimage.gaussian_filter(rng.normal(size=(bands + 2, *shape)), (0, 3, 3))
    blotches = (blotches - blotches.min()) / np.ptp(blotches)
    image = torch.from_numpy((40 + 170 * blotches[:bands]).round().astype(np.uint8))
    labels = torch.from_numpy(np.digitize(blotches[-2], [0.4, 0.6]))
    labels[:3] = IGNORED
    instances = torch.from_numpy(ndimage.label(labels.numpy() == 1)[0].astype(np.int32))
    known, weight = labels != IGNORED, torch.from_numpy(blotches[-1:].astype(np.float32)) + 1
    return image, {"labels": labels, "instances": instances, "known": known, "weight": weight}


def test_every_field_is_explained_and_unknown_ones_are_refused() -> None:
    assert all(field.description for field in Augmentation.model_fields.values())
    assert len(CHANCES) == 19
    for wrong in ({"flips": 0.5}, {"flip": 1.5}, {"blur_sigma": 0}, {"hue": 0.7}):
        with pytest.raises(ValidationError):
            Augmentation(**wrong)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_any_number_of_bands(bands: int, dtype: torch.dtype) -> None:
    image, maps = draw(bands)
    everything = Augmentation(**dict.fromkeys(CHANCES, 1.0))
    for seed in range(3):
        found, moved = everything.sample(image.to(dtype), maps, seeded(seed), background=0)
        assert found.dtype == dtype
        assert found.shape == image.shape
        assert 0 <= found.min() <= found.max() <= 255
        assert {k: (v.dtype, v.shape) for k, v in moved.items()} == {k: (v.dtype, v.shape) for k, v in maps.items()}


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_same_seed_same_sample_whatever_the_global_generator(seed: int) -> None:
    image, maps = draw()
    everything = Augmentation(elastic=0.5)
    torch.manual_seed(1)
    first, first_maps = everything.sample(image, maps, seeded(seed))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    before, before_maps = image.clone(), {k: v.clone() for k, v in maps.items()}
    second, second_maps = everything.sample(image, maps, seeded(seed))
    assert torch.equal(first, second)
    assert all(torch.equal(first_maps[k], second_maps[k]) for k in maps)
    assert torch.equal(image, before)
    assert all(torch.equal(maps[k], before_maps[k]) for k in maps)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_generator_goes_on() -> None:
    image, maps = draw()
    rng = seeded(1)
    seen = {Augmentation().sample(image, maps, rng)[0].numpy().tobytes() for _ in range(5)}
    assert len(seen) == 5


def test_all_turned_off_changes_nothing() -> None:
    image, maps = draw()
    found, moved = only().sample(image, maps, seeded(1))
    assert torch.equal(found, image)
    assert all(torch.equal(moved[k], maps[k]) for k in maps)


@pytest.mark.parametrize("name", MOVES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_maps_move_with_the_image(name: str, seed: int) -> None:
    """Bands that are maps themselves: a ramp, its steps, and a mark of what is inside."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    ramp, inside = 2 * x + y + 40, torch.full((48, 48), 250.0)
    labels = (ramp // 20).long()
    image = torch.stack([ramp, inside])
    maps = {"ramp": ramp[None], "labels": labels, "inside": inside == 250, "instances": (ramp > 100).int()}
    maps = {k: v.clone() for k, v in maps.items()}
    found, moved = only(**{name: 1.0}).sample(image, maps, seeded(seed))
    torch.testing.assert_close(found[:1], moved["ramp"])
    within, without = found[1] > 249.5, found[1] < 0.5
    known = moved["labels"] != IGNORED
    assert known[within].all()
    assert not known[without].any()
    assert torch.equal(known, moved["inside"])
    assert within.float().mean() > 0.5
    # A nearest neighbour is at most a pixel from the place itself; the ramp rises by 3 at most on that way.
    assert ((moved["labels"] * 20 + 10 - found[0]).abs()[within] <= 10 + 3).all()
    assert set(moved["instances"].unique().tolist()) <= {0, 1}
    assert set(moved["labels"].unique().tolist()) <= {*labels.unique().tolist(), IGNORED}


def test_flips_and_turns_give_all_eight_views_alike() -> None:
    image, maps = draw()
    views = [torch.rot90(v, k, (-2, -1)) for v in (image, image.flip(-1)) for k in range(4)]
    found = [only(flip=0.5, quarter_turn=1.0).sample(image, maps, seeded(s))[0] for s in range(160)]
    counts = [sum(torch.equal(view, f) for f in found) for view in views]
    assert sum(counts) == 160
    assert min(counts) >= 8


def test_flips_alone_give_four_views() -> None:
    image, maps = draw()
    found = {only(flip=0.5).sample(image, maps, seeded(s))[0].numpy().tobytes() for s in range(30)}
    assert found == {image.flip(dims).numpy().tobytes() for dims in ([], [-1], [-2], [-2, -1])}


def test_sides_that_differ_stay_as_they_are() -> None:
    image, maps = draw(shape=(30, 50))
    views = [image, torch.rot90(image, 2, (-2, -1))]
    found = [only(quarter_turn=1.0).sample(image, maps, seeded(s))[0] for s in range(12)]
    assert [sum(torch.equal(view, f) for f in found) > 0 for view in views] == [True, True]
    assert all(f.shape == image.shape for f in found)


def test_a_turn_is_by_all_angles_up_to_its_limit() -> None:
    """Of a line through the centre, seen at both its ends."""
    image = torch.zeros(1, 61, 61)
    image[:, 29:32] = 255
    angles = []
    for seed in range(40):
        found, _ = only(affine=1.0, rotation=30.0, scale=0.0, shear=0.0).sample(image, {}, seeded(seed))
        y, x = np.nonzero(found[0].numpy() > 128)
        angles.append(math.degrees(math.atan2(*np.polyfit(x, y, 1)[:1], 1)))
    assert -31 < min(angles) < -20
    assert 20 < max(angles) < 31


def test_scales_are_within_their_limits() -> None:
    image = torch.zeros(1, 80, 80)
    image[:, 20:60, 20:60] = 255
    sides = [
        float(only(affine=1.0, rotation=0.0, scale=0.2, shear=0.0).sample(image, {}, seeded(s))[0].sum() / 255) ** 0.5
        for s in range(40)
    ]
    assert 40 * 0.79 < min(sides) < 40 * 0.9
    assert 40 * 1.1 < max(sides) < 40 * 1.26


def test_a_warp_moves_points_as_far_as_it_says() -> None:
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    moved = []
    for seed in range(4):
        found, _ = only(elastic=1.0, elastic_shift=2.5).sample(torch.stack([y, x]), {}, seeded(seed))
        moved.append((found - torch.stack([y, x]))[:, 20:-20, 20:-20])
    assert float(torch.stack(moved).std()) == pytest.approx(2.5, rel=0.15)


@given(seed=st.integers(0, 2**32), shape=st.sampled_from([(30, 40), (40, 40), (45, 20), (64, 64)]))
@settings(max_examples=12)
def test_a_part_of_the_size_that_is_asked_for(seed: int, shape: tuple[int, int]) -> None:
    y, x = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    image = torch.stack([y, x]).to(torch.uint8) + 1
    found, moved = only().sample(image, {"labels": y, "place": (40 * y + x).int() + 1}, seeded(seed), size=shape)
    assert found.shape[1:] == moved["labels"].shape == shape
    inside = moved["labels"] != IGNORED
    assert int(inside.sum()) == min(shape[0], 40) * min(shape[1], 40)
    place = moved["place"][inside] - 1
    assert torch.equal(found[:, inside].long() - 1, torch.stack([place // 40, place % 40]))
    assert not found[:, ~inside].any()
    assert not moved["place"][~inside].any()


@pytest.mark.parametrize("background", [None, 0])
def test_missing_imagery_is_background_or_unknown(background: int | None) -> None:
    image, maps = draw()
    maps["distance"] = maps["weight"] * 7
    shares = []
    for seed in range(12):
        found, moved = only(missing=1.0).sample(image, maps, seeded(seed), background=background)
        missing = (found != image).any(0)
        assert len(found[:, missing].unique(dim=1).T) <= 1
        assert torch.equal(moved["labels"][~missing], maps["labels"][~missing])
        assert torch.equal(moved["distance"][0, ~missing], maps["distance"][0, ~missing])
        assert (moved["labels"][missing] == (IGNORED if background is None else background)).all()
        assert not moved["distance"][0, missing].any()
        assert not moved["instances"][missing].any()
        assert (moved["known"][missing] == (background is not None)).all()
        assert (moved["weight"][0, missing] == (background is not None)).all()
        shares.append(float(missing.float().mean()))
    assert 0 < min(shares) < 0.3
    assert 0.6 < max(shares) < 1


@pytest.mark.parametrize("name", COLOURS)
def test_colours_change_and_maps_do_not(name: str) -> None:
    image, maps = draw()
    changed = 0
    for seed in range(4):
        found, moved = only(**{name: 1.0}).sample(image, maps, seeded(seed))
        assert all(torch.equal(moved[k], maps[k]) for k in maps)
        changed += not torch.equal(found, image)
    assert changed >= 3


@pytest.mark.parametrize("name", ["band_order", "grey", "jpeg"])
def test_what_is_for_three_bands_is_left_out_for_four(name: str) -> None:
    image, maps = draw(4)
    for seed in range(4):
        assert torch.equal(only(**{name: 1.0}).sample(image, maps, seeded(seed))[0], image)


def test_brightness_of_seven_bands_is_that_of_one() -> None:
    image, maps = draw(1)
    seven = image.expand(7, -1, -1)
    for seed in range(3):
        one, _ = only(colour=1.0).sample(image, maps, seeded(seed))
        many, _ = only(colour=1.0).sample(seven, maps, seeded(seed))
        assert torch.equal(many, one.expand(7, -1, -1))
        assert not torch.equal(one, image)


def test_noise_is_as_strong_as_it_says() -> None:
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    sigmas = [float(only(noise=1.0).sample(image, {}, seeded(s))[0].float().std()) for s in range(30)]
    assert 1.9 < min(sigmas) < 4
    assert 10 < max(sigmas) < 12.3


def test_a_sensor_that_resolves_less_keeps_the_light_and_loses_the_detail() -> None:
    """Stripes of one pixel are grey to a sensor that sees half of the pixels, wherever its pixels lie."""
    image = torch.zeros(1, 60, 60)
    image[:, ::2] = 200
    for seed in range(8):
        found, _ = only(resample=1.0, resample_factor=3.0).sample(image, {}, seeded(seed))
        assert float(found.mean()) == pytest.approx(100, abs=2)
        assert float(found.std()) < 45


def batch_of(n: int = 4) -> tuple[torch.Tensor, dict]:
    samples = [draw(seed=seed) for seed in range(n)]
    maps = {k: torch.stack([m[k] for _, m in samples]) for k in samples[0][1]}
    return torch.stack([image for image, _ in samples]), maps


def taken_from_the_next(images: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Where each sample shows the one after it; everywhere else it must show itself."""
    own, other = (found == images).all(1), (found == images.roll(-1, 0)).all(1)
    assert (own | other).all()
    return other & ~own


@pytest.mark.parametrize("mix", MIXES)
def test_a_batch_is_the_seeds(mix: str) -> None:
    images, maps = batch_of()
    mixing = only(**{mix: 1.0})
    first, second, third = (mixing.batch(images, maps, seeded(s), background=0) for s in (1, 1, 2))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, third.images)
    assert all(torch.equal(first.maps[k], second.maps[k]) for k in maps)


def test_a_batch_of_one_and_a_batch_without_mixing() -> None:
    images, maps = batch_of()
    for batch in (only().batch(images, maps, seeded(1)), only(cutmix=1.0).batch(images[:1], maps, seeded(1))):
        assert torch.equal(batch.images, images[: len(batch.images)])
        assert batch.share == 1


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_cutmix_is_a_rectangle_with_its_labels(seed: int) -> None:
    images, maps = batch_of()
    mixed = only(cutmix=1.0).batch(images, maps, seeded(seed))
    taken = taken_from_the_next(images, mixed.images)
    for index, mask in enumerate(taken.numpy()):
        if mask.any():
            rows, cols = ndimage.find_objects(mask.astype(int))[0]
            taken[index, rows, cols] = True  # a pixel that is alike in both
    for name in ("labels", "known", "weight"):
        mask = taken if maps[name].ndim == 3 else taken[:, None]
        assert torch.equal(mixed.maps[name], torch.where(mask, maps[name].roll(-1, 0), maps[name]))
    assert mixed.share == 1


def test_cutmix_takes_parts_of_all_sizes() -> None:
    images, maps = batch_of()
    mixing = only(cutmix=1.0)
    shares = [
        float(mask.float().mean())
        for seed in range(20)
        for mask in taken_from_the_next(images, mixing.batch(images, maps, seeded(seed)).images)
    ]
    assert min(shares) < 0.05
    assert max(shares) > 0.6


@pytest.mark.parametrize("by", ["instances", "labels"])
def test_copy_paste_brings_whole_objects_and_nothing_else(by: str) -> None:
    images, maps = batch_of()
    if by == "labels":
        del maps["instances"]
        maps["labels"] = torch.where(maps["labels"] == 2, 0, maps["labels"])
    parts = [ndimage.label(labels.numpy() == 1)[0] for labels in maps["labels"]]
    pasted = left = 0
    for seed in range(5):
        mixed = only(copy_paste=1.0).batch(images, maps, seeded(seed), background=0)
        for index in range(4):
            giver, took = (index + 1) % 4, np.zeros(parts[0].shape, bool)
            for value in range(1, parts[giver].max() + 1):
                part = torch.from_numpy(parts[giver] == value)
                came = torch.equal(mixed.images[index][:, part], images[giver][:, part])
                pasted, left = pasted + came, left + (not came)
                took |= part.numpy() & came
            outside = torch.from_numpy(~took)
            assert torch.equal(mixed.images[index][:, outside], images[index][:, outside])
            assert (mixed.maps["labels"][index][~outside] == 1).all()
            assert torch.equal(mixed.maps["labels"][index][outside], maps["labels"][index][outside])
            if by == "instances":
                numbers = mixed.maps["instances"][index]
                own, came_in = numbers[outside].unique(), numbers[~outside].unique()
                assert not set(own.tolist()) & set(came_in.tolist())
    assert pasted > 10
    assert left > 10


def test_objects_of_two_classes_are_not_one() -> None:
    """Each connected part is pasted, or not, by itself: of two classes with one object each, sometimes one comes."""
    labels = torch.zeros(2, 20, 20, dtype=torch.int64)
    labels[1, 2:8, 2:8], labels[1, 12:18, 12:18] = 1, 2
    images = torch.zeros(2, 1, 20, 20)
    came = set()
    for seed in range(20):
        mixed = only(copy_paste=1.0).batch(images, {"labels": labels}, seeded(seed), background=0)
        came.add(frozenset(mixed.maps["labels"][0].unique().tolist()))
    assert came == {frozenset(c) for c in ({0}, {0, 1}, {0, 2}, {0, 1, 2})}


def test_copy_paste_needs_to_know_what_an_object_is() -> None:
    images, maps = batch_of()
    del maps["instances"]
    with pytest.raises(ValueError, match="copy_paste needs"):
        only(copy_paste=1.0).batch(images, maps, seeded(1))


def test_mixup_is_a_sum_and_so_is_its_loss() -> None:
    """Cross-entropy against the mixed soft target is the sum of the cross-entropies."""
    images, maps = batch_of()
    images = images.float()
    mixed = only(mixup=1.0, mixup_alpha=5.0).batch(images, maps, seeded(3))
    assert 0.5 <= mixed.share < 1
    torch.testing.assert_close(mixed.images, mixed.share * images + (1 - mixed.share) * images.roll(-1, 0))
    assert torch.equal(mixed.others["labels"], maps["labels"].roll(-1, 0))
    logits = torch.randn(4, 3, 40, 40)
    known = {
        k: torch.where(v["labels"] == IGNORED, 0, v["labels"]) for k, v in (("a", mixed.maps), ("b", mixed.others))
    }
    hot = {k: functional.one_hot(v, 3).permute(0, 3, 1, 2).float() for k, v in known.items()}
    soft = mixed.share * hot["a"] + (1 - mixed.share) * hot["b"]
    both = {"a": {"labels": known["a"]}, "b": {"labels": known["b"]}}
    found = type(mixed)(mixed.images, both["a"], both["b"], mixed.share).loss(
        lambda m: total_loss([CrossEntropy()], logits, m["labels"])
    )
    torch.testing.assert_close(found, functional.cross_entropy(logits, soft))
    assert torch.isfinite(mixed.loss(lambda m: total_loss([Dice()], logits, m["labels"])))


def test_mixup_of_bytes_stays_bytes() -> None:
    images, maps = batch_of()
    assert only(mixup=1.0).batch(images, maps, seeded(3)).images.dtype == torch.uint8


# --- pairs of scenes


def pair(seed: int = 0) -> tuple[torch.Tensor, dict]:
    """Two dates that are one image, the labels 0 and 1."""
    image, maps = draw(seed=seed)
    return torch.cat([image, image]), {"labels": maps["labels"].clamp(max=255) % 2 + 254 * (maps["labels"] == IGNORED)}


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_both_dates_are_moved_alike(seed: int) -> None:
    """What is one image at both dates is one afterwards, whatever moves it, and whether or not they are exchanged."""
    image, maps = pair()
    moves = only(**dict.fromkeys([*MOVES, "swap", "missing"], 0.8))
    found, moved = moves.sample(image, maps, seeded(seed), background=0, dates=2)
    inside = moved["labels"] != IGNORED
    if (found[:3] != found[3:]).any():  # imagery that is missing has a flat colour at each date
        beyond = (found[:3] != found[3:]).any(0)
        assert (moved["labels"][beyond] == 0).all()
        assert all(len(band[beyond].unique()) == 1 for band in found)
    else:
        assert inside.any()


def test_each_date_has_colours_of_its_own() -> None:
    image, maps = pair()
    for name in ("gain", "gamma", "colour", "noise", "jpeg"):
        found, _ = only(**{name: 1.0}).sample(image, maps, seeded(3), dates=2)
        assert not torch.equal(found[:3], found[3:]), name


def test_dates_are_exchanged_half_of_the_time() -> None:
    image, maps = pair()
    image[3:] = 255 - image[3:]
    results = [only(swap=0.5).sample(image, maps, seeded(seed), dates=2) for seed in range(60)]
    exchanged = sum(torch.equal(found, image.roll(3, 0)) for found, _ in results)
    assert exchanged + sum(torch.equal(found, image) for found, _ in results) == 60
    assert 18 < exchanged < 42
    assert all(torch.equal(moved["labels"], maps["labels"]) for _, moved in results)


def test_a_date_that_is_taken_twice_has_not_changed() -> None:
    image, maps = pair()
    image[3:] = 255 - image[3:]
    found, moved = only(repeat=1.0).sample(image, maps, seeded(0), background=0, dates=2)
    assert torch.equal(found[:3], found[3:])
    assert torch.equal(moved["labels"] == IGNORED, maps["labels"] == IGNORED)
    assert set(moved["labels"].unique().tolist()) == {0, IGNORED}
    unknown, _ = only(repeat=1.0).sample(image, maps, seeded(0), dates=2)
    assert torch.equal(unknown, image), "without a background nobody knows what has not changed"


def test_one_date_is_neither_exchanged_nor_repeated() -> None:
    image, maps = draw(bands=6)
    found, moved = only(swap=1.0, repeat=1.0).sample(image, maps, seeded(0), background=0)
    assert torch.equal(found, image)
    assert torch.equal(moved["labels"], maps["labels"])
