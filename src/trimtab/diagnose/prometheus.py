"""A look at a job as Prometheus metrics: the text exposition format, and a server of it on this machine alone.

Series of single ranks are kept to the ranks of the verdict and those furthest behind: a label for each of thousands of
ranks would cost a monitoring system more than it tells.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

import numpy as np

from trimtab.diagnose.look import Look
from trimtab.diagnose.standing import STATES, Standing
from trimtab.diagnose.verdict import Kind, Verdict

_PREFIX = "trimtab_diagnose_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, Any], float]


def exposition(look: Look, verdict: Verdict, *, limit: int = 32) -> str:
    """Return the metrics of a look, with series for at most `limit` single ranks."""
    standing = Standing.of(look)
    ranks = standing.most_telling(limit, verdict.ranks)
    counts = standing.counts()
    rows = {rank: standing.row(rank) for rank in ranks}
    lost = int(np.minimum(look.snapshot.lost, 1 << 40).sum())
    inside = [rank for rank in ranks if rows[rank]["state"] == "inside" and rows[rank]["seconds"] is not None]
    named = ("communicator", "operation")
    families: list[tuple[str, str, str, Sequence[Sample]]] = [
        (
            "verdict",
            "gauge",
            "1 for the kind of the verdict, 0 for all others.",
            [({"kind": kind}, float(kind == verdict.kind)) for kind in get_args(Kind)],
        ),
        ("verdict_confidence_ratio", "gauge", "Confidence of the verdict, 0 to 1.", [({}, verdict.confidence)]),
        (
            "faulty_rank",
            "gauge",
            "1 for each rank that the verdict names.",
            [(_rank(r), 1) for r in verdict.ranks[:limit]],
        ),
        ("faulty_ranks", "gauge", "How many ranks the verdict names.", [({}, len(verdict.ranks))]),
        ("ranks", "gauge", "Ranks by what they do.", [({"state": s}, counts.get(s, 0)) for s in STATES]),
        (
            "operations_total",
            "counter",
            "Operations completed, over all ranks.",
            [({}, float(standing.num_done.sum()))],
        ),
        ("lost_operations_total", "counter", "Operations that could not be recorded.", [({}, lost)]),
        ("data_wait_seconds_total", "counter", "Seconds waited for data, over all ranks.", [({}, look.waited.sum())]),
        (
            "rank_operations_total",
            "counter",
            "Operations that a rank has completed.",
            [(_rank(rank), rows[rank]["completed_operations"]) for rank in ranks],
        ),
        (
            "rank_lag_operations",
            "gauge",
            "Operations that a rank is behind the first of a communicator.",
            [(_rank(rank), rows[rank]["lag_operations"]) for rank in ranks],
        ),
        (
            "rank_inside_seconds",
            "gauge",
            "Seconds that a rank has been inside its operation.",
            [(_rank(r) | {name: rows[r][name] for name in named}, rows[r]["seconds"]) for r in inside],
        ),
        (
            "rank_data_wait_seconds_total",
            "counter",
            "Seconds that a rank has waited for data.",
            [(_rank(rank), rows[rank]["waited_for_data_seconds"]) for rank in ranks],
        ),
    ]
    return "".join(line for family in families for line in _family(*family))


def _rank(rank: int) -> dict[str, Any]:
    return {"rank": rank}


def _family(name: str, kind: str, about: str, samples: Sequence[Sample]) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {about}\n# TYPE {_PREFIX}{name} {kind}\n"
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
        yield f"{_PREFIX}{name}{f'{{{inner}}}' if inner else ''} {float(value):.15g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Server:
    """Serves the metrics at ``http://127.0.0.1:port/metrics`` until `close`; others than this machine cannot reach it.

    `latest` returns the text. Port 0 takes any that is free: see `port`.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, latest: Callable[[], str], *, port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                found = self.path.split("?")[0] == "/metrics"
                data = latest().encode() if found else b"metrics are at /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: the terminal belongs to the live view."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="trimtab-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
