"""More than two dates: what each pixel's history most probably was, and which objects of many dates are the same.

**Pixels.** A hidden Markov model for each pixel by itself (Rabiner 1989). Hidden is the class at each date; from one
date to the next it stays with the probability `stay`, and becomes each of the others with the same share of the rest.
What is seen is a label with a confidence c: the class that it names has the likelihood c, each other one its share of
the rest. Forward-backward gives each date's most probable class given all dates. A date that does not see a pixel is no
evidence and no step: the history is the same without it. The matrix is symmetric and every class as probable at first,
so a history told backwards is the same backwards; a history of one class stays as it is.

**Objects.** Date after date, what is there is compared with the latest outline of everything so far (see
`geoseg.changes.objects`); what hangs together is one track. So an object that was missed at one date is the same again
at the next, and what was split or merged stays one track.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoseg.changes.objects import Objects, Rules, match_events
from geoseg.raster import CONFIDENCE_STEPS, NODATA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SUREST: Final = 0.99
"""Likelihood of a label at most: no single date is beyond doubt."""

ABOVE_CHANCE: Final = 0.02
"""By how much the likelihood of the label's class is above that of a guess at least."""

DIGITS: Final = 9
"""To how many of them probabilities are told apart, so that no last bit decides between equals."""


@dataclass(frozen=True)
class Stay:
    """The transition model: how many classes there are, and how probable it is that a pixel keeps its own."""

    classes: int
    stay: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what is no probability, or says that change is the rule."""
        if not (self.classes > 1 and 1 / self.classes <= self.stay < 1):
            msg = f"stay must be from 1/classes to below 1, and classes 2 or more, got {self}"
            raise ValueError(msg)

    def step(self, chances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Chances (class, ...) one date on: symmetric, so it is one date back as well."""
        other = (1 - self.stay) / (self.classes - 1)
        moved: NDArray[np.float64] = (self.stay - other) * chances + other * chances.sum(axis=0)
        return moved


def smoothed(
    labels: NDArray[np.uint8], confidence: NDArray[np.uint8], model: Stay
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The most probable class of each pixel at each date (date, y, x), and its probability as codes of 1/250.

    Labels uint8, 255 = not seen, which stays so; confidence in codes of 1/250, 255 as good as a guess.
    """
    seen = labels != NODATA
    likely = [_likelihood(*each, model) for each in zip(labels, confidence, strict=True)]
    before, after = _messages(likely, seen, model), _messages(likely[::-1], seen[::-1], model)[::-1]
    found, sure = np.full_like(labels, NODATA), np.full_like(labels, NODATA)
    for date, (past, future, now) in enumerate(zip(before, after, likely, strict=True)):
        chances = _to_one(past * now * future)
        best = chances.round(DIGITS).argmax(axis=0)
        codes = np.rint(np.take_along_axis(chances, best[None], 0)[0] * CONFIDENCE_STEPS)
        found[date] = np.where(seen[date], best, NODATA)
        sure[date] = np.where(seen[date], codes, NODATA)
    return found, sure


def _likelihood(labels: NDArray[np.uint8], confidence: NDArray[np.uint8], model: Stay) -> NDArray[np.float64]:
    """(class, y, x) how probable it is to see such a label, by the true class."""
    known = np.where(confidence == NODATA, 0, confidence) / CONFIDENCE_STEPS
    own = np.clip(known, 1 / model.classes + ABOVE_CHANCE, SUREST)
    other = (1 - own) / (model.classes - 1)
    return np.stack([np.where(labels == value, own, other) for value in range(model.classes)])


def _messages(likely: Sequence[NDArray[np.float64]], seen: NDArray[np.bool_], model: Stay) -> list[NDArray[np.float64]]:
    """What all dates before each of them say of its class (class, y, x); a date that does not see is left out."""
    chances = np.full_like(likely[0], 1 / model.classes)
    begun = np.zeros(seen.shape[1:], bool)
    told = []
    for now, here in zip(likely, seen, strict=True):
        told.append(np.where(begun, model.step(chances), chances))
        chances = np.where(here, _to_one(told[-1] * now), chances)
        begun = begun | here
    return told


def _to_one(chances: NDArray[np.float64]) -> NDArray[np.float64]:
    whole: NDArray[np.float64] = chances / chances.sum(axis=0)
    return whole


# --- objects


def tracks(dates: Sequence[Objects], rules: Rules) -> list[NDArray[np.int64]]:
    """Of the objects of each date, in metres of one projection, the number of the track that each belongs to.

    Numbers are 0, 1, 2 ... in the order in which tracks are first seen, those of one date in the order of its objects.
    """
    owner: list[int] = []  # of each object of all dates so far, a member of its track; a forest
    starts = np.cumsum([0, *(len(each) for each in dates)])

    def root(member: int) -> int:
        while owner[member] != member:
            owner[member] = owner[owner[member]]
            member = owner[member]
        return member

    latest = np.zeros(0, np.int64)  # members whose outline is the latest of their track
    everything = _joined(dates)
    for date, objects in enumerate(dates):
        mine = np.arange(starts[date], starts[date + 1])
        owner.extend(mine.tolist())
        of_before, of_after = match_events(_chosen(everything, latest), objects, rules)
        first: dict[int, int] = {}
        for member, event in zip([*latest.tolist(), *mine.tolist()], [*of_before, *of_after], strict=True):
            one, other = sorted((root(first.setdefault(int(event), member)), root(member)))
            owner[other] = one
        gone = latest[~np.isin(of_before, of_after)]
        latest = np.concatenate([gone, mine])
    roots = np.array([root(member) for member in range(len(owner))], np.int64)
    number = np.unique(roots, return_inverse=True)[1] if len(roots) else roots
    return [number[start:stop] for start, stop in itertools.pairwise(starts)]


def _joined(dates: Sequence[Objects]) -> Objects:
    names = ("id", "geometry", "seen", "present", "absent")
    return Objects(*(np.concatenate([getattr(each, name) for each in dates]) for name in names))


def _chosen(objects: Objects, members: NDArray[np.int64]) -> Objects:
    names = ("id", "geometry", "seen", "present", "absent")
    return Objects(*(getattr(objects, name)[members] for name in names))
