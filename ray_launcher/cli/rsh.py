"""`ray-launcher rsh`: a stand-in for ssh, for tools that start their remote processes through one: mpirun, pdsh.

It keeps ssh's manners rather than ours: the words of the command are joined for a shell, and 255 is our own failure.
"""

from __future__ import annotations

import ipaddress
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import click

from ray_launcher import Failed, LaunchOptions, NodeSummary, Placement, ProcLauncherError, RayProcLauncher, list_nodes
from ray_launcher.cli.connect import ConnectError
from ray_launcher.cli.jobs import Several, Target
from ray_launcher.cli.outcome import LAUNCHER_ERROR
from ray_launcher.cli.running import Run
from ray_launcher.cli.sessions import VARIABLE as SESSION
from ray_launcher.cli.sessions import address_option, session_name, verb
from ray_launcher.cli.terminal import STDIN, Feed

_RSH = """Run COMMAND on a node of the cluster, as `ssh HOST COMMAND` would: for tools that are told which ssh to use.

\b
Examples:
  ray-launcher rsh 10.0.0.7 nvidia-smi
  mpirun --mca plm_rsh_agent "ray-launcher rsh" -H 10.0.0.7,10.0.0.8 ./program
  mpiexec.hydra -launcher ssh -launcher-exec ray-launcher-rsh -hosts 10.0.0.7,10.0.0.8 ./program
  pdsh -R exec -w 10.0.0.7,10.0.0.8 ray-launcher-rsh %h uptime

HOST is the address of a node, its host name, or its node id. The words of COMMAND are joined by spaces and given to sh
there, in the home directory. stdin, stdout and stderr pass through; SIGINT, SIGTERM and SIGHUP reach COMMAND. It
holds no resources, and sees all GPUs that the node has.

COMMAND ends with this command line, however that ends; in a session (-S, or RAY_LAUNCHER_SESSION) that is there
already it starts faster, but lives on when this command line is killed with SIGKILL.

The other options are ssh's, taken so that tools may give them, and of no effect.

Exit code: COMMAND's own, or 128+N when signal N killed it; 255 for any failure to run it.
"""

#: What ssh answers where the command could not be run.
_OWN_FAILURE = 255
#: In the home directory, as ssh does it, if that is there.
_SHELL = 'cd "${HOME:-/}" 2>/dev/null; exec sh -c "$1"'
_WITH_VALUE = ["-b", "-c", "-e", "-E", "-F", "-i", "-I", "-J", "-l", "-m", "-o", "-p", "-W"]
_FLAGS = ["-1", "-2", "-4", "-6", "-a", "-A", "-C", "-f", "-k", "-K", "-q", "-s", "-T", "-v", "-x", "-X", "-y", "-Y"]


class OnHost(Several):
    """A `Job` of one command on a node that is named as for ssh."""

    def __init__(self, host: str, options: LaunchOptions) -> None:
        super().__init__("rsh", {f"rsh-{secrets.token_hex(4)}": options})
        self._host = host

    def settle(self) -> None:
        """See `Job`."""
        where = Placement(node_id=node_of(self._host, list_nodes()), gpu_mask="inherit")
        self.launches = {proc_id: replace(options, placement=where) for proc_id, options in self.launches.items()}


class Remote(Run):
    """Hands signals on as they are, and tells its own failures as ssh does."""

    def _signalled(self, number: int) -> None:
        if not isinstance(self._launcher, RayProcLauncher) or not self._running:
            super()._signalled(number)
            return
        proc_id = self._ids[0]
        try:
            if number == signal.SIGTERM or self._launcher.info(proc_id).state == "PENDING":
                self._launcher.terminate(proc_id, float("inf"))  # also what does not run yet
            else:
                self._launcher.signal(proc_id, number)
        except ProcLauncherError:
            pass  # the spawner is gone: the port will say so

    def _conclude(self) -> int:
        code = super()._conclude()
        failed = any(isinstance(result.kind, Failed) for _, result in self._account.failures)
        return _OWN_FAILURE if failed or self._verdict == LAUNCHER_ERROR else code


def node_of(host: str, nodes: Sequence[NodeSummary]) -> str:
    """The id of the node that is meant: by id, address or host name. Raises `ConnectError`."""
    host = host.rpartition("@")[2]
    found = [node for node in nodes if host in (node.node_id, node.ip, node.hostname, node.hostname.partition(".")[0])]
    if not found:
        addresses = _addresses(host)
        found = [node for node in nodes if node.ip in addresses]
    if len(found) > 1:
        ids = ", ".join(f"{node.node_id} ({node.ip})" for node in found)
        raise ConnectError(f"{len(found)} nodes are called {host}; give one's address or id: {ids}")
    if not found:
        known = ", ".join(f"{node.ip} ({node.hostname})" for node in nodes)
        raise ConnectError(f"no node of the cluster is called {host}; there are {known}")
    return found[0].node_id


def _addresses(host: str) -> set[str]:
    try:
        return {str(ipaddress.ip_address(str(each[4][0]).partition("%")[0])) for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()


class _SshLike(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As ssh, which tells what is wrong with its command line by its exit code, too."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.show()
            sys.exit(_OWN_FAILURE)


def _tolerated(command: Any) -> Any:
    for name in _WITH_VALUE:
        command = click.option(name, multiple=True, hidden=True, expose_value=False)(command)
    return click.option(*_FLAGS, "_flags", is_flag=True, multiple=False, hidden=True, expose_value=False)(command)


@verb(
    "rsh",
    "Run a command on a node, in the manner of ssh.",
    _RSH,
    cls=_SshLike,
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@click.option("-n", "no_stdin", is_flag=True, help="Give COMMAND nothing to read.")
@click.option(
    "-S",
    "--session",
    type=session_name,
    envvar=SESSION,
    metavar="SESSION",
    help=f"Detached session to run in, made if need be.  [default: {SESSION}, else one of our own]",
)
@address_option
@_tolerated
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [WORDS]...")
def rsh(*, no_stdin: bool, session: str | None, address: str | None, host: str, command: Sequence[str]) -> int:
    """See `_RSH`."""
    try:
        options = LaunchOptions(
            program="sh", args=["-c", _SHELL, "sh", " ".join(command)], want_stdin=not no_stdin, tail_lines=0
        )
    except ValueError as error:
        click.echo(f"ray-launcher: {error}", err=True)
        return _OWN_FAILURE
    feed = None if no_stdin else Feed(STDIN)
    return Remote(OnHost(host, options), Target(address, session, 5, None), feed, start=False).execute()


def main() -> NoReturn:
    """`ray-launcher-rsh`: the verb as a command of one word, for tools that take no more."""
    from ray_launcher.cli.main import main as entry  # noqa: PLC0415  # which imports us

    entry(["rsh", *sys.argv[1:]])
