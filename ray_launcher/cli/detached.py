"""`ray-launcher run --detach`: launched in a session that goes on, and left to it."""

from __future__ import annotations

import click

from ray_launcher import ProcLauncherError, RayProcLauncher
from ray_launcher.cli.connect import ConnectError, connect, leave
from ray_launcher.cli.jobs import Job


def launch(job: Job, address: str | None, session: str, grace: float) -> str:
    """Launch it there; returns the name that it goes by. Raises `click.ClickException`."""
    try:
        connect(address, start=False)
        job.settle()
        launcher = RayProcLauncher(session=session, detached=True, grace=grace)
        job.launch(launcher)
        launcher.close()
    except (ConnectError, ProcLauncherError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(job.name)
    leave(0)
    return job.name
