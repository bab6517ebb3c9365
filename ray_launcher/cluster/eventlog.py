"""Events of a session as lines of JSON in the log of its spawner, where somebody asks for that.

Ray keeps what a spawner logs in the log file of its worker.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import datetime, timezone

from ray_launcher.cluster.events import Happening
from ray_launcher.exits import decode_exit

#: In the spawner's environment, from the session's runtime_env or Ray's own: anything but "" and "0" asks for them.
VARIABLE = "RAY_LAUNCHER_LOG_EVENTS"
LOGGER = "ray_launcher.events"


def event_log(session: str) -> Callable[[Happening], None]:
    """A function that logs an event; one that does nothing where nobody has asked for that."""
    if os.environ.get(VARIABLE, "0") in ("", "0"):
        return lambda _: None
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    if not logger.hasHandlers():  # else the user's own decide
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    return lambda event: logger.info("%s", line(session, event))


def line(session: str, event: Happening) -> str:
    """All that is known of it but what the proc wrote."""
    node, report = event.node, event.report
    facts = {
        "when": datetime.fromtimestamp(event.when, timezone.utc).isoformat(),
        "session": session,
        "proc_id": event.proc_id,
        "state": event.state,
        "node_id": None if node is None else node.node_id,
        "node_ip": None if node is None else node.ip,
        "pid": event.pid,
        "gang_id": event.gang_id,
        "rank": event.rank,
        "restarts": event.restarts,
    }
    if report is not None:
        facts |= {
            "result": str(decode_exit(report)),
            "exit_code": report.exit_code,
            "signal": report.signal,
            "core_dumped": report.core_dumped,
            "failed_reason": report.failed_reason,
        }
    return json.dumps(facts)
