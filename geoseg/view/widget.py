"""What widgets share: a class made when it is first needed, which hears one message of its browser at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

from geoseg.errors import OptionError, reason_of

WIDGETS: Final = Path(__file__).parent / "widgets"


def widget_base(what: str) -> Any:
    """The base of a widget's class. Raises `OptionError` without anywidget, which is an extra, naming `what` needs it.

    A class of it has `heard(told)`, which does what the browser asks for, and `failed(told, why)`, which answers where
    that raised an error: a browser that waits for an answer has to get one. JupyterLab sends what a browser says to a
    thread of its own in the kernel, or to the main one while that other is not yet there: so one waits for the other.
    """
    try:
        import anywidget
    except ImportError as error:
        msg = f"{what} needs anywidget: pip install 'geoseg[jupyter]'"
        raise OptionError(msg) from error

    class Hearing(anywidget.AnyWidget):
        """A widget that answers whatever it hears."""

        def __init__(self, **traits: Any) -> None:
            super().__init__(**traits)
            self._one_at_a_time = threading.Lock()
            self.on_msg(self._hear)

        def _hear(self, _widget: Any, told: dict[str, Any], _buffers: Any) -> None:
            with self._one_at_a_time:
                try:
                    self.heard(told)
                except Exception as error:
                    self.log.debug("", exc_info=True)
                    self.failed(told, reason_of(error))

    return Hearing
