"""`ray-launcher run --detach`: launched in a session that goes on, and left to it."""

from __future__ import annotations

import click

from ray_launcher import ProcLauncherError
from ray_launcher.cli.connect import ConnectError, connect, leave
from ray_launcher.cli.jobs import Job, Target


def launch(job: Job, target: Target) -> None:
    """Launch it there, and tell the name that it goes by. Raises `click.ClickException`."""
    try:
        connect(target.address, start=False)
        job.settle()
        launcher = target.session_launcher()
        job.launch(launcher)
        launcher.close()
    except (ConnectError, ProcLauncherError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(job.name)
    leave(0)
