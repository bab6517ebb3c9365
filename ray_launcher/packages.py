"""Local code for a session: what Ray does for the runtime_env of `ray.init`, done for that of a session's actors."""

from __future__ import annotations

import inspect
import logging
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from ray._private.runtime_env.py_modules import upload_py_modules_if_needed  # private: kept to this place
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed  # the same

_logger = logging.getLogger(__name__)


def brought(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """The same with local directories in the cluster's own store, under names made of what they hold.

    Raises what Ray does: ValueError for what is no directory, or too large.
    """
    found = dict(runtime_env)
    if not {"working_dir", "py_modules"}.isdisjoint(found):
        with tempfile.TemporaryDirectory() as scratch:
            for upload in (upload_py_modules_if_needed, upload_working_dir_if_needed):
                asked: dict[str, Any] = {"scratch_dir": scratch, "logger": _logger}
                if "include_gitignore" in inspect.signature(upload).parameters:  # Ray 2.50 and later
                    asked["include_gitignore"] = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
                found = dict(upload(found, **asked))
        found.pop("excludes", None)
    return found
