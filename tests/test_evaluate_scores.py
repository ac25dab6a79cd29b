"""The measures of an evaluation against other people's, and against their definitions on small arrays."""

from __future__ import annotations

import contextlib
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_dilation, distance_transform_edt
from sklearn import metrics
from torchmetrics.functional.classification import binary_calibration_error, multiclass_jaccard_index
from torchmetrics.functional.detection import panoptic_quality

from geoseg.evaluation.boundaries import STEPS, Ruler, boundary_counts, boundary_scores
from geoseg.evaluation.objects import object_scores, overlaps, polis
from geoseg.evaluation.pixels import (
    calibration_counts,
    calibration_scores,
    confusion_of,
    pixel_scores,
)
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

seeds = st.integers(0, 2**32 - 1)


def blobs(rng: np.random.Generator, shape: tuple[int, int], grain: int, share: float = 0.5) -> NDArray[np.bool_]:
    """Random shapes of some size."""
    coarse = rng.random((-(-shape[0] // grain), -(-shape[1] // grain))) < share
    return coarse.repeat(grain, 0).repeat(grain, 1)[: shape[0], : shape[1]] ^ (rng.random(shape) < 0.02)


# --- pixels


@settings(max_examples=40)
@given(seed=seeds, classes=st.integers(2, 5), size=st.integers(1, 200), nodata=st.sampled_from([0.0, 0.3]))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_scores_of_pixels_are_those_of_scikit_learn(seed: int, classes: int, size: int, nodata: float) -> None:
    rng = np.random.default_rng(seed)
    p, r = (rng.integers(0, rng.integers(1, classes + 1), size).astype(np.uint8) for _ in range(2))
    p[rng.random(size) < nodata], r[rng.random(size) < nodata] = 255, 255
    confusion = confusion_of(p, r, classes)
    seen = (p != 255) & (r != 255)
    p, r, labels = p[seen], r[seen], range(classes)
    if not seen.any():
        assert not confusion.any()
        assert math.isnan(pixel_scores(confusion).mean_iou)
        return
    assert (confusion == metrics.confusion_matrix(r, p, labels=labels)).all()
    scores = pixel_scores(confusion)
    kwargs: dict[str, Any] = {"labels": labels, "average": None, "zero_division": np.nan}
    for name, theirs in (
        ("precision", metrics.precision_score(r, p, **kwargs)),
        ("recall", metrics.recall_score(r, p, **kwargs)),
        ("dice", metrics.f1_score(r, p, **kwargs)),
    ):
        np.testing.assert_allclose([getattr(c, name) for c in scores.classes], theirs, err_msg=name)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(r, p))
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(r, p))
    present = sorted({*p, *r})
    iou = metrics.jaccard_score(r, p, labels=present, average=None, zero_division=0)
    np.testing.assert_allclose([scores.classes[c].iou for c in present], iou)
    assert scores.mean_iou == pytest.approx(iou.mean())
    weighted = metrics.jaccard_score(r, p, average="weighted", zero_division=0)
    assert scores.frequency_weighted_iou == pytest.approx(weighted)
    if len(present) == classes:
        theirs = multiclass_jaccard_index(torch.from_numpy(p).long(), torch.from_numpy(r).long(), classes)
        assert scores.mean_iou == pytest.approx(float(theirs), rel=1e-5)


def test_a_class_that_occurs_nowhere_counts_nowhere() -> None:
    scores = pixel_scores(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ["land", "water", "ice"])
    assert [c.name for c in scores.classes] == ["land", "water", "ice"]
    assert math.isnan(scores.classes[2].iou)
    assert scores.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert scores.frequency_weighted_iou == pytest.approx((4 * 3 / 4 + 4 * 4 / 5) / 8)
    assert (scores.classes[0].predicted, scores.classes[0].reference) == (3, 4)


def test_labels_that_do_not_fit_are_refused() -> None:
    one = np.array([[0, 1]], np.uint8)
    with pytest.raises(ValueError, match="labels of the reference must be 0 to 1, got 0 to 2"):
        confusion_of(one, np.array([[0, 2]], np.uint8), 2)
    with pytest.raises(ValueError, match="not of one shape"):
        confusion_of(one, one.T, 2)


# --- calibration


@settings(max_examples=30)
@given(seed=seeds, size=st.integers(1, 300))
def test_calibration_is_that_of_torchmetrics(seed: int, size: int) -> None:
    """At codes that lie in a bin, not at its end, where the two differ: Guo's bins hold their upper end."""
    rng = np.random.default_rng(seed)
    labels, truth = rng.integers(0, 3, (2, size)).astype(np.uint8)
    codes = rng.choice([code for code in range(251) if code % 50], size).astype(np.uint8)
    codes[rng.random(size) < 0.2], labels[rng.random(size) < 0.1], truth[rng.random(size) < 0.1] = 255, 255, 255
    counts = calibration_counts(labels, truth, codes)
    seen = (codes != 255) & (labels != 255) & (truth != 255)
    assert counts.sum() == seen.sum()
    scores = calibration_scores(counts)
    if not seen.any():
        assert math.isnan(scores.expected_error)
        return
    said, right = torch.from_numpy(codes[seen] / 250), torch.from_numpy((labels == truth)[seen].astype(np.int64))
    assert scores.expected_error == pytest.approx(float(binary_calibration_error(said, right, 15, "l1")), abs=1e-6)
    assert scores.maximum_error == pytest.approx(float(binary_calibration_error(said, right, 15, "max")), abs=1e-6)
    assert sum(b.pixels for b in scores.bins) == seen.sum()


def test_a_bin_holds_its_upper_end() -> None:
    counts = np.zeros((2, 251), np.int64)
    counts[1, [0, 50, 51, 250]] = 1
    filled = [i for i, b in enumerate(calibration_scores(counts).bins) if b.pixels]
    assert filled == [0, 2, 3, 14]  # 50/250 is 3/15: the end of the third
    assert [b.pixels for b in calibration_scores(counts, bins=1).bins] == [4]


# --- boundaries


def edge_of(mask: NDArray[np.bool_], compared: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & compared & binary_dilation(~mask & compared)


def brute_force(
    p: NDArray[np.bool_], r: NDArray[np.bool_], compared: NDArray[np.bool_], ruler: Ruler
) -> dict[str, float]:
    """All definitions on a whole image, by exact distance transforms."""

    def away(targets: NDArray[np.bool_]) -> NDArray[np.float64]:
        if not targets.any():
            return np.full(targets.shape, np.inf)
        distance: NDArray[np.float64] = distance_transform_edt(~targets, sampling=ruler.pixel)
        return distance

    def mean(values: NDArray[Any]) -> float:
        return float(values.mean()) if len(values) else math.nan

    limit = ruler.tolerance + 1e-9
    bands = [m & compared & (away(~m & compared) <= limit) for m in (p, r)]
    edges = [edge_of(m, compared) for m in (p, r)]
    there, back = away(edges[1])[edges[0]], away(edges[0])[edges[1]]
    precision, recall = mean(there <= limit), mean(back <= limit)
    both = np.minimum(np.concatenate([there, back]), ruler.cap)
    directed = [np.minimum(d, ruler.cap) for d in (there, back) if len(d)]
    return {
        "iou": mean((bands[0] & bands[1])[bands[0] | bands[1]]),
        "precision": precision,
        "recall": recall,
        "f1": math.nan
        if not len(both)
        else (2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0),
        "assd_m": mean(both),
        "hd95_m": max((float(np.percentile(d, 95, method="inverted_cdf")) for d in directed), default=math.nan),
    }


@settings(max_examples=60)
@given(
    seed=seeds,
    rows=st.integers(1, 60),
    cols=st.integers(1, 60),
    grain=st.integers(1, 12),
    pixel=st.sampled_from([(0.5, 0.5), (0.13, 0.17), (10.0, 10.0), (0.3, 1.1)]),
    tolerance=st.sampled_from([0.4, 1.0, 2.0, 3.7, 5.0]),  # in pixels
    cap=st.sampled_from([1.0, 2.5, 6.0]),  # in tolerances
)
@example(seed=0, rows=4, cols=1, grain=2, pixel=(0.5, 0.5), tolerance=2.0, cap=1.0)  # narrower than the tolerance
@example(seed=0, rows=40, cols=50, grain=60, pixel=(0.5, 0.5), tolerance=2.0, cap=2.5)
def test_boundaries_are_as_defined_however_they_are_cut(
    seed: int, rows: int, cols: int, grain: int, pixel: tuple[float, float], tolerance: float, cap: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (rows, cols)
    r = blobs(rng, shape, grain)
    p = np.roll(r, rng.integers(-3, 4, 2), (0, 1)) if rng.random() < 0.7 else blobs(rng, shape, grain)
    compared = ~blobs(rng, shape, 7, 0.1) if rng.random() < 0.7 else np.ones(shape, bool)
    ruler = Ruler(pixel, tolerance * max(pixel), tolerance * max(pixel) * cap)
    whole = boundary_counts(p, r, compared, Window.of_shape(shape), ruler)
    scores = boundary_scores(whole, ruler)
    expected = brute_force(p, r, compared, ruler)
    exact = {"iou", "precision", "recall", "f1"}
    for name, value in expected.items():
        within = 1e-12 if name in exact else ruler.resolution * 0.51
        assert getattr(scores, name) == pytest.approx(value, abs=within, nan_ok=True), name

    parts = []
    for core in Window.of_shape(shape).blocks((int(rng.integers(1, 40)), int(rng.integers(1, 40)))):
        (up, left), (down, right) = ruler.margin, shape
        outer = Window(
            max(core.row_start - up, 0),
            min(core.row_stop + up, down),
            max(core.col_start - left, 0),
            min(core.col_stop + left, right),
        )
        arrays = (a[outer.slices] for a in (p, r, compared))
        parts.append(boundary_counts(*arrays, core.relative_to(outer), ruler))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    for name in ("both", "either", "predicted_near", "reference_near"):
        assert getattr(total, name) == getattr(whole, name), name
    assert (total.predicted == whole.predicted).all()
    assert (total.reference == whole.reference).all()


def square(shift: int) -> NDArray[np.bool_]:
    mask = np.zeros((60, 60), bool)
    mask[20:40, 10 + shift : 30 + shift] = True
    return mask


def test_a_square_that_is_shifted() -> None:
    ruler = Ruler((0.5, 0.5), 1.0, 20.0)
    all_of_it = Window.of_shape((60, 60))
    compared = np.ones((60, 60), bool)

    def scores(p: NDArray[np.bool_], r: NDArray[np.bool_]) -> Any:
        return boundary_scores(boundary_counts(p, r, compared, all_of_it, ruler), ruler, "square")

    same = scores(square(0), square(0))
    assert (same.iou, same.f1, same.assd_m, same.hd95_m, same.capped) == (1, 1, 0, 0, 0)
    near, far = scores(square(2), square(0)), scores(square(4), square(0))
    assert (near.f1, near.hd95_m) == (1, 1.0)
    assert far.f1 < 0.8
    assert far.hd95_m == pytest.approx(2.0)
    assert 0 < far.iou < near.iou < 1
    # bands of two pixels, 20 x 20 less 16 x 16: shifted by two, they share two rows of 18 above and two below
    assert near.iou == pytest.approx(72 / (2 * 144 - 72))
    lost = scores(square(0), np.zeros((60, 60), bool))
    assert (lost.iou, lost.f1, lost.precision, lost.assd_m, lost.hd95_m, lost.capped) == (0, 0, 0, 20, 20, 1)
    assert math.isnan(lost.recall)
    none = scores(np.zeros((60, 60), bool), np.zeros((60, 60), bool))
    assert all(math.isnan(v) for v in (none.iou, none.f1, none.assd_m, none.hd95_m, none.capped))


def test_no_boundary_is_made_by_what_is_not_compared() -> None:
    """Half of a square is hidden, and the other half reaches the edge of the scene."""
    mask = np.zeros((30, 30), bool)
    mask[:15, 10:20] = True
    compared = np.ones((30, 30), bool)
    compared[:, 15:] = False
    ruler = Ruler((1.0, 1.0), 1.0, 10.0)
    counts = boundary_counts(mask, mask, compared, Window.of_shape((30, 30)), ruler)
    assert counts.predicted.sum() == 15 + 5 - 1
    assert counts.both == counts.either == 15 + 5 - 1


def test_a_ruler_that_measures_nothing_is_refused() -> None:
    for pixel, tolerance, cap in (((0.0, 1.0), 1.0, 2.0), ((1.0, 1.0), 0.0, 2.0), ((1.0, 1.0), 3.0, 2.0)):
        with pytest.raises(ValueError, match="a ruler needs"):
            Ruler(pixel, tolerance, cap)
    assert Ruler((1.0, 1.0), 1.0, 20.0).resolution == 20 / STEPS


# --- objects


def boxes(rng: np.random.Generator, n: int, size: int = 40) -> NDArray[np.object_]:
    low = rng.integers(0, size - 12, (n, 2))
    high = low + rng.integers(1, 12, (n, 2))
    return np.asarray(shapely.box(*low.T, *high.T))


def moved(rng: np.random.Generator, polygons: NDArray[np.object_], size: int = 40) -> NDArray[np.object_]:
    """Boxes with each side moved by a pixel or so."""
    bounds = shapely.bounds(polygons) + rng.integers(-1, 2, (len(polygons), 4))
    bounds[:, 2:] = np.maximum(bounds[:, 2:], bounds[:, :2] + 1)
    return np.asarray(shapely.box(*np.clip(bounds, 0, size).T))


def coco_precision(
    predicted: NDArray[np.object_], reference: NDArray[np.object_], confidence: NDArray[Any], area: tuple[float, float]
) -> NDArray[np.float64]:
    """(10,) COCO's average precision at IoU .50 to .95, from masks; objects outside the range of areas are ignored."""

    def encoded(polygon: Any) -> Any:
        x0, y0, x1, y1 = (int(v) for v in polygon.bounds)
        mask = np.zeros((40, 40), np.uint8, order="F")
        mask[y0:y1, x0:x1] = 1
        return rle.encode(mask)

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 1, "height": 40, "width": 40}],
            "categories": [{"id": 1}],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 1, "segmentation": encoded(g), "area": g.area, "iscrowd": 0}
                for i, g in enumerate(reference, 1)
            ],
        }
        truth.createIndex()
        results = [
            {"image_id": 1, "category_id": 1, "segmentation": encoded(g), "score": float(c)}
            for g, c in zip(predicted, confidence, strict=True)
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.maxDets = [1, 10, 1000]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(area)], ["these"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, 0, 0, -1].mean(axis=1)
    return precision


@settings(max_examples=60)
@given(seed=seeds, reference=st.integers(1, 12), extra=st.integers(0, 6), area=st.sampled_from([(0, 1e4), (20, 60)]))
def test_average_precision_is_that_of_coco(seed: int, reference: int, extra: int, area: tuple[float, float]) -> None:
    """Also where objects overlap and several could be meant, and where some of either side do not count."""
    rng = np.random.default_rng(seed)
    true = boxes(rng, reference)
    found = np.concatenate([moved(rng, true[rng.random(reference) < 0.8]), boxes(rng, extra), moved(rng, true[:2])])
    confidence = rng.permutation(len(found)) / max(len(found), 1)
    counts = [(shapely.area(side) >= area[0]) & (shapely.area(side) <= area[1]) for side in (found, true)]
    scores = object_scores(found, true, confidence, predicted_counts=counts[0], reference_counts=counts[1])
    assert (scores.predicted, scores.reference) == (counts[0].sum(), counts[1].sum())
    if not counts[1].any():
        assert math.isnan(scores.ap)
        return
    theirs = coco_precision(found, true, confidence, area)
    assert scores.ap == pytest.approx(theirs.mean(), abs=1e-9)
    assert scores.ap50 == pytest.approx(theirs[0], abs=1e-9)
    assert scores.ap75 == pytest.approx(theirs[5], abs=1e-9)


def disjoint(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Boxes in the cells of a lattice: a raster of their numbers, and their outlines."""
    raster = np.zeros((40, 40), np.int64)
    polygons = []
    for row in range(0, 40, 10):
        for col in range(0, 40, 10):
            if rng.random() < 0.7:
                y0, x0, y1, x1 = np.array([row, col, row, col]) + rng.integers((0, 0, 4, 4), (3, 3, 11, 11))
                polygons.append(shapely.box(x0, y0, x1, y1))
                raster[y0:y1, x0:x1] = len(polygons)
    return raster, np.array(polygons, object)


@settings(max_examples=30)
@given(seed=seeds)
def test_panoptic_quality_is_that_of_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (p, predicted), (r, reference) = disjoint(rng), disjoint(rng)
    scores = object_scores(predicted, reference)
    pixels = [torch.from_numpy(np.stack([raster > 0, raster], axis=-1).astype(np.int64))[None] for raster in (p, r)]
    theirs = panoptic_quality(
        *pixels, things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True, allow_unknown_preds_category=True
    )
    quality, segmentation, recognition = np.asarray(theirs)[0]
    if len(predicted) + len(reference) == 0:
        assert math.isnan(scores.panoptic_quality)
        return
    assert scores.panoptic_quality == pytest.approx(quality, abs=1e-6)
    assert scores.recognition_quality == pytest.approx(recognition, abs=1e-6)
    if scores.matched:
        assert scores.segmentation_quality == pytest.approx(segmentation, abs=1e-6)
    assert scores.f1 == scores.recognition_quality  # at 0.5 they are one thing
    for value, whole in ((scores.precision, len(predicted)), (scores.recall, len(reference))):
        assert value == pytest.approx(scores.matched / whole if whole else math.nan, nan_ok=True)
    if len(reference):
        assert scores.count_error == pytest.approx(len(predicted) / len(reference) - 1)


@settings(max_examples=30)
@given(seed=seeds)
def test_overlaps_are_all_pairs_that_share_area(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = boxes(rng, 9), boxes(rng, 7)
    found = {(i, j): iou for i, j, iou in zip(*(v.tolist() for v in overlaps(a, b)), strict=True)}
    expected = {
        (i, j): x.intersection(y).area / x.union(y).area
        for i, x in enumerate(a)
        for j, y in enumerate(b)
        if x.intersection(y).area
    }
    assert found == pytest.approx(expected)


@settings(max_examples=30)
@given(seed=seeds, threshold=st.sampled_from([0.1, 0.3, 0.5, 0.8]))
def test_the_order_of_a_file_decides_nothing(seed: int, threshold: float) -> None:
    """Without confidence, and with one that has equals; shapes of random outline, so that no two IoU are equal."""
    rng = np.random.default_rng(seed)
    true = shapely.affinity.scale
    reference = np.array([true(g, *(1 + rng.random(2))) for g in boxes(rng, 12)], object)
    predicted = np.array([true(g, *(1 + rng.random(2))) for g in [*boxes(rng, 4), *moved(rng, reference)]], object)
    for confidence in (None, rng.integers(0, 3, len(predicted)) / 2):
        order = rng.permutation(len(predicted))
        again = None if confidence is None else confidence[order]
        first = object_scores(predicted, reference, confidence, threshold=threshold)
        second = object_scores(predicted[order], reference[rng.permutation(12)], again, threshold=threshold)
        for name in ("matched", "ap50", "ap", "panoptic_quality", "polis_m"):
            assert getattr(second, name) == pytest.approx(getattr(first, name), nan_ok=True), name


def test_without_confidence_all_predictions_go_at_once() -> None:
    """Two of three are right, two of four are found: precision 2/3 up to recall 1/2, then none."""
    cells = shapely.box(np.arange(0, 40, 10), 0, np.arange(0, 40, 10) + 8, 8)
    scores = object_scores(np.array([*cells[:2], shapely.box(0, 50, 5, 55)], object), cells)
    assert scores.ap50 == pytest.approx(51 / 101 * 2 / 3)
    assert (scores.precision, scores.recall, scores.count_error) == pytest.approx((2 / 3, 1 / 2, -1 / 4))


def test_the_more_confident_one_chooses() -> None:
    """Two claim one object at a low threshold: one finds it, the other is a false alarm, whoever comes first."""
    reference = np.array([shapely.box(0, 0, 10, 10)], object)
    claims = np.array([shapely.box(0, 0, 10, 6), shapely.box(0, 4, 10, 10)], object)
    for confidence, ap in (([0.9, 0.2], 1.0), ([0.2, 0.9], 1.0)):
        scores = object_scores(claims, reference, np.array(confidence), threshold=0.3)
        assert (scores.matched, scores.precision, scores.recall, scores.ap50) == (1, 0.5, 1, ap)
    assert object_scores(claims, reference, threshold=0.6).matched == 0
    claims[1] = shapely.box(0, 3, 10, 10)  # without confidence the one with the higher IoU is taken
    best = object_scores(claims, reference, threshold=0.3)
    assert best.polis_m == pytest.approx(polis(claims[1:], reference)[0])


def test_what_does_not_count_is_no_false_alarm_and_can_still_be_a_partner() -> None:
    cells = shapely.box(np.arange(0, 40, 10), 0, np.arange(0, 40, 10) + 8, 8)
    inside = np.array([True, True, False, False])
    whole = object_scores(cells, cells, predicted_counts=inside, reference_counts=inside)
    assert (whole.predicted, whole.reference, whole.matched, whole.precision, whole.recall) == (2, 2, 2, 1, 1)
    # the first is predicted with its point outside, the third the other way round
    crossing = object_scores(cells, cells, predicted_counts=~inside, reference_counts=inside)
    assert (crossing.matched, crossing.precision, crossing.recall, crossing.ap) == (2, 1, 1, 1)
    alone = object_scores(cells, cells[:1], predicted_counts=inside, reference_counts=inside[:1])
    assert (alone.matched, alone.precision, alone.recall) == (1, 0.5, 1)


def test_nothing_on_one_side() -> None:
    cells, none = shapely.box([0, 10], 0, [8, 18], 8), np.empty(0, object)
    missed = object_scores(none, cells)
    assert (missed.recall, missed.f1, missed.ap, missed.panoptic_quality, missed.count_error) == (0, 0, 0, 0, -1)
    assert math.isnan(missed.precision)
    assert math.isnan(missed.polis_m)
    alarms = object_scores(cells, none)
    assert (alarms.precision, alarms.f1, alarms.panoptic_quality) == (0, 0, 0)
    assert math.isnan(alarms.recall)
    assert math.isnan(alarms.count_error)
    assert math.isnan(object_scores(none, none).f1)


def test_broken_outlines_are_mended() -> None:
    bow = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    scores = object_scores(np.array([bow]), np.array([bow]))
    assert (scores.matched, scores.ap) == (1, 1)


# --- PoLiS


def polis_by_definition(a: Any, b: Any) -> float:
    def outline(polygon: Any) -> Any:
        return polygon.boundary

    def vertices(polygon: Any) -> list[Any]:
        parts = polygon.geoms if polygon.geom_type == "MultiPolygon" else [polygon]
        rings = [ring for part in parts for ring in (part.exterior, *part.interiors)]
        return [shapely.Point(xy) for ring in rings for xy in ring.coords[:-1]]

    one = sum(v.distance(outline(b)) for v in vertices(a)) / (2 * len(vertices(a)))
    other = sum(v.distance(outline(a)) for v in vertices(b)) / (2 * len(vertices(b)))
    return one + other


@settings(max_examples=20)
@given(seed=seeds)
def test_polis_is_as_defined(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stars = []
    for _ in range(8):
        turn = np.sort(rng.random(rng.integers(3, 9))) * 2 * np.pi
        xy = np.column_stack([np.cos(turn), np.sin(turn)]) * (3 + rng.random((len(turn), 1)) * 4)
        stars.append(shapely.Polygon(xy + rng.normal(0, 2, 2)))
    holed = shapely.box(0, 0, 9, 9) - shapely.box(2, 2, 4, 5)
    parts = shapely.MultiPolygon([shapely.box(0, 0, 3, 3), shapely.box(5, 5, 8, 9)])
    first, second = np.array([*stars[:4], holed, parts], object), np.array([*stars[4:], parts, stars[0]], object)
    expected = [polis_by_definition(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(polis(first, second), expected)


def test_polis_of_a_shifted_square() -> None:
    """Each of the four vertices is 1 m off, but for the two that the shift keeps on the other's side: 0 m."""
    a, b = np.array([shapely.box(0, 0, 10, 10)]), np.array([shapely.box(1, 0, 11, 10)])
    assert polis(a, b) == pytest.approx([0.5])
    assert polis(a, a) == pytest.approx([0])
    assert len(polis(a[:0], b[:0])) == 0
