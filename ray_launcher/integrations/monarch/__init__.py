"""Monarch: its procs on a Ray cluster (`MonarchProcLauncher`), and its jobs (`RayJob`). Needs Monarch itself."""

try:
    import monarch.actor  # noqa: F401  # before anything that would fail with another error
except ImportError as error:
    raise ImportError(
        f"ray_launcher.integrations.monarch needs Monarch ({error}): pip install 'ray-proc-launcher[monarch]'"
    ) from error

from ray_launcher.integrations.monarch.job import RayJob
from ray_launcher.integrations.monarch.launcher import MonarchProcLauncher

__all__ = ["MonarchProcLauncher", "RayJob"]
