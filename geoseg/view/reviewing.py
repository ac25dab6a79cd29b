"""`review`: a widget for Jupyter in which a person goes through footprints, from the least confident to the most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from geoseg.view.review import Review, Reviewed
from geoseg.view.widget import WIDGETS, widget_base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geoseg.pipeline import Result

SAYS: Final = {"accept", "reject", "relabel", "skip"}


def review(
    results: Result | str | Path,
    *,
    classes: Sequence[str] = (),
    source: str | Path | None = None,
    into: str | Path | None = None,
) -> Any:
    """A widget that shows footprints one by one with the scene around them, the least confident first.

    Buttons and keys say what each one is: `a` accept, `r` reject, `1` to `9` another class, `s` skip, `b` back, `v`
    that everything in view is right; `h` hides outlines. Each verdict is kept in `into` (review.jsonl in the folder of
    the results) at once, and the next widget goes on from there. Its method `save(folder)` writes what `geoseg train`
    takes.

    `classes`: further ones to relabel to. `source`: where the scene is; None: where the results say. Raises
    `OptionError` without anywidget (extra `jupyter`) or for verdicts on other footprints, `OutputError` for a folder
    without results.
    """
    folder = Path(results) if isinstance(results, (str, Path)) else results.folder
    made = _widget_class()
    return made(Review(folder, classes=classes, source=source, into=None if into is None else Path(into)))


def answer(review: Review, told: dict[str, Any]) -> str | None:
    """Do what the browser asks for; the footprint to go back to, if it is one. What is out of date does nothing."""
    does, id_ = told.get("does"), str(told.get("id"))
    if does == "undo":
        return review.undo()
    if does == "view":
        review.all_right(review.piece(id_).window)
    elif does in SAYS:
        label = told.get("label")
        review.decide(id_, does, str(label) if does == "relabel" else None)
    return None


def shown(review: Review, id_: str | None) -> tuple[dict[str, Any], bytes]:
    """A piece as the browser takes it, and its picture; empty where there is none left."""
    if id_ is None:
        return {}, b""
    piece = review.piece(id_)
    told = {
        "id": piece.id,
        "side": piece.window.shape[0],
        "outline": piece.outline,
        "others": [list(other) for other in piece.others],
        "told": [list(pair) for pair in piece.told],
        "title": f"Scene around footprint {piece.id}: " + ", ".join(f"{name} {text}" for name, text in piece.told),
    }
    return told, piece.picture


def progress(review: Review) -> dict[str, int]:
    """How many there are, how many were looked at, and what was said of these."""
    said: list[str] = [decision.verdict for decision in review.states.values()]
    return {"count": review.count, "done": len(said), **{verdict: said.count(verdict) for verdict in sorted(SAYS)}}


def _widget_class() -> Any:
    """The class, made when it is first needed: the library is an extra."""
    base = widget_base("review()")
    import traitlets as t

    class ReviewWidget(base):  # type: ignore[misc, valid-type]  # made by a function: the library is an extra
        """Footprints to go through; `review` holds what was said."""

        _esm = WIDGETS / "review.js"
        _css = WIDGETS / "review.css"
        piece = t.Dict().tag(sync=True)
        picture = t.Bytes().tag(sync=True)
        progress = t.Dict().tag(sync=True)
        classes: t.List[str] = t.List().tag(sync=True)
        said = t.Dict().tag(sync=True)
        note = t.Unicode().tag(sync=True)

        def __init__(self, review: Review) -> None:
            super().__init__(classes=list(review.classes), note=review.below.why)
            self.review = review
            self._answers = 0
            self._show(review.next_id)

        def _show(self, id_: str | None) -> None:
            with self.hold_sync():
                self.piece, self.picture = shown(self.review, id_)
                self.progress = progress(self.review)

        def _say(self, **said: Any) -> None:
            """Numbered, for the browser waits until it hears something, and does not hear what it knows already."""
            self._answers += 1
            self.said = {"number": self._answers, **said}

        def heard(self, told: dict[str, Any]) -> None:
            if told.get("does") != "undo" and told.get("id") != self.piece.get("id"):
                return  # a key that was pressed before the next piece was there
            back = answer(self.review, told)
            self._show(back or self.review.next_id)
            self._say(does=told.get("does"), label=told.get("label"))

        def failed(self, told: dict[str, Any], why: str) -> None:  # noqa: ARG002  what was asked is on the screen
            self._say(error=why)

        def save(self, folder: str | Path) -> Reviewed:
            """Labels and the area in which they are all, as GeoJSON: see `Review.save`."""
            return self.review.save(folder)

    return ReviewWidget
