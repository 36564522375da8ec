"""The page about the racks in Dask's dashboard: ``/rack``, and ``/rack.json`` for programs.

It is served by the scheduler's own HTTP server, where the dashboard is. It needs no bokeh, which Dask's pages do: the
whole page is made here, and looks for its successor once a second. Where there is bokeh, the bar at the top of Dask's
pages leads to it.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes
from tornado.web import HTTPError, RequestHandler

from bequest.dask import compat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Scheduler

    from bequest.dask.figures import Figures

logger = logging.getLogger("distributed.scheduler.bequest")

PAGE = "rack"


def add_page(scheduler: Scheduler, plugin_name: str) -> None:
    """Has the scheduler's HTTP server show the figures of the plugin of this name, as long as it has that."""
    in_bar = compat.add_to_dashboard(scheduler, PAGE)
    known: dict[str, Any] = {"scheduler": scheduler, "plugin_name": plugin_name, "has_dashboard": in_bar}
    prefix = r"(?:/.*)?"  # the server may be told to have one before all paths
    scheduler.http_application.add_handlers(
        r".*", [(rf"{prefix}/{PAGE}/?", _Page, known), (rf"{prefix}/{PAGE}\.json", _Document, known)]
    )
    if not in_bar:
        logger.info("Dask's dashboard needs bokeh, which is not installed here; the page /%s does not", PAGE)


class _Handler(RequestHandler):
    def initialize(self, scheduler: Scheduler, plugin_name: str, has_dashboard: bool) -> None:
        self._scheduler = scheduler
        self._plugin_name = plugin_name
        self._has_dashboard = has_dashboard

    def figures(self) -> dict[str, Any]:
        plugin: Any = self._scheduler.plugins.get(self._plugin_name)
        figures: Figures | None = getattr(plugin, "figures", None)
        if figures is None:
            raise HTTPError(404, reason="bequest.dask.Rack is not a plugin of this cluster any more")
        self.set_header("Cache-Control", "no-store")
        return figures.document()

    def data_received(self, chunk: bytes) -> None:
        """Nothing is sent here."""


class _Document(_Handler):
    def get(self) -> None:
        self.write(self.figures())


class _Page(_Handler):
    def get(self) -> None:
        self.render(
            "page.html",
            figures=self.figures(),
            course=course,
            format_bytes=format_bytes,
            has_dashboard=self._has_dashboard,
        )

    def get_template_path(self) -> str:
        return os.path.dirname(__file__)


def course(values: Sequence[float], width: int, height: int) -> str:
    """The points of a line through these values, the highest at the top, for SVG."""
    highest = max(values) or 1.0
    step = width / max(len(values) - 1, 1)
    return " ".join(
        f"{i * step:.1f},{height - value / highest * height:.1f}" for i, value in enumerate(values)
    )
