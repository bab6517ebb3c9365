"""The commands of podman and docker: what a node runs to start, look for and remove containers. Pure."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ray_launcher import LaunchOptions
from ray_launcher.spawners.shim import LISTS

#: Of every container: the spawner's session, the launch, and, as `shim.c` says, the process that sees to it.
SESSION_LABEL, LAUNCH_LABEL, SHIM_LABEL = "ray_launcher.session", "ray_launcher.launch", "ray_launcher.shim"
#: Where the container has what the shim and `init.c` share.
BOX = "/.ray_launcher"

#: What `LaunchOptions` may have that containers do not do, and what to do instead.
_REFUSED = {
    "want_stdin": "write its input to a file of a mount",
    "tty": "run `podman exec -it` on its node",
    "secrets": "mount a file",
    "ready_when": "ask the program itself",
    "max_restarts": "launch it again",
    "time_limit": "terminate it when its time is over",
}


@dataclasses.dataclass(frozen=True)
class Engine:
    """How containers are made; see `ContainerSpawner` for the meaning of each."""

    image: str
    engine: str
    engine_options: tuple[str, ...]
    run_options: tuple[str, ...]
    mounts: tuple[str, ...]
    user: str | None
    network: str | None
    gpus: str
    limits: bool

    def plan(self, session: str, launch: str, opts: LaunchOptions) -> dict[str, list[str]]:
        """What the shim of a launch is told: its lists, by name, see `packed`.

        otherwise: what `shim.c` becomes unless the program just exits.  quiet: something, where the output is to be
        discarded.  gpus: how they are handed over, or nothing.  run: the engine's command, up to where `shim.c` adds
        words of its own.  image: what comes behind those.  look, remove: find the image, remove the container.
        """
        name = f"ray-launcher-{launch}"
        labels = (f"{SESSION_LABEL}={session}", f"{LAUNCH_LABEL}={launch}")
        run = [*self.command("run"), "--rm", "--pull=never", "--log-driver=none", "--name", name]
        run += [word for label in labels for word in ("--label", label)]
        run += ["--entrypoint", f"{BOX}/init", "--env", "RAY_LAUNCHER_ID"]  # by its name: the value is not ours to know
        run += [word for mount in self.mounts for word in ("--volume", mount)]
        run += [] if self.user is None else ["--user", self.user]
        run += [] if self.network is None else ["--network", self.network]
        run += _limits(opts) if self.limits else []
        run += [f"--ulimit={kind.lower()}={soft}:{hard}" for kind, (soft, hard) in _pairs(opts.rlimits)]
        return {
            "otherwise": [sys.executable, "-I", "-S", str(Path(__file__).with_name("shim.py"))],
            "quiet": [] if opts.want_stdio else ["yes"],
            "gpus": [self.gpus] if opts.placement.num_gpus else [],
            "run": [*run, *self.run_options],
            "image": [self.image],
            "look": [*self.command("image"), "inspect", self.image],
            "remove": [*self.removal(), name],
        }

    def command(self, verb: str) -> list[str]:
        """The beginning of one."""
        # at the level "warning" podman talks to the program's stderr
        quiet = ["--log-level=error"] if self.is_podman else []
        return [self.engine, *quiet, *self.engine_options, verb]

    def pull(self) -> list[str]:
        """Fetches the image."""
        return [*self.command("pull"), self.image]

    def listing(self, label: str = SHIM_LABEL) -> list[str]:
        """Prints the id and the shim of each container that has this label, given as NAME or NAME=VALUE."""
        shim = f'index .Labels "{SHIM_LABEL}"' if self.is_podman else f'.Label "{SHIM_LABEL}"'
        shown = ["--all", "--no-trunc", "--format", f"{{{{.ID}}}} {{{{{shim}}}}}"]
        return [*self.command("ps"), *shown, "--filter", f"label={label}"]

    def removal(self) -> list[str]:
        """Ends and removes the containers that are named behind it."""
        return [*self.command("rm"), "--force", *(["--time=0"] if self.is_podman else [])]

    @property
    def is_podman(self) -> bool:
        """As far as its name tells."""
        return Path(self.engine).name.startswith("podman")


def packed(plan: Mapping[str, list[str]]) -> list[str]:
    """A plan as the arguments of `shim.c`: each list with its length before it."""
    return [word for name in LISTS for word in (str(len(plan[name])), *plan[name])]


def spec(opts: LaunchOptions) -> bytes:
    """What `init.c` is told to run. It travels and lies on the node like a secret: on no command line."""
    ours = {
        "HYPERACTOR_PROCESS_NAME": opts.process_name,
        "HYPERACTOR_MESH_BOOTSTRAP_MODE": opts.bootstrap_payload,
        "BOOTSTRAP_LOG_CHANNEL": opts.log_channel,
    }
    env = {**opts.env, **{name: value for name, value in ours.items() if value is not None}}
    argv = [opts.program if opts.arg0 is None else opts.arg0, *opts.args]
    words = [
        "1" if opts.inherit_env else "0",
        "" if opts.umask is None else f"{opts.umask:o}",
        "" if opts.nice is None else str(opts.nice),
        opts.cwd or "",
        opts.program,
        str(len(argv)),
        *argv,
        str(len(opts.env_remove)),
        *opts.env_remove,
        *(f"{name}={value}" for name, value in env.items()),
    ]
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def refusal(opts: LaunchOptions) -> str:
    """Why a container cannot be launched so, and what to do; "" if it can."""
    for name, instead in _REFUSED.items():
        if getattr(opts, name):
            return f"LaunchOptions.{name} is not for containers: {instead}"
    if opts.proc_bind is not None and opts.proc_bind.cpunodebind:
        return "LaunchOptions.proc_bind.cpunodebind is not for containers: name the CPUs, as in ProcBind(cpus='0-3')"
    return ""


def _limits(opts: LaunchOptions) -> list[str]:
    place, bind, found = opts.placement, opts.proc_bind, []
    if place.num_cpus:
        found.append(f"--cpus={place.num_cpus:g}")
    if place.memory:
        found.append(f"--memory={int(place.memory)}b")
    if bind is not None and (cpus := bind.physcpubind or bind.cpus):
        found.append(f"--cpuset-cpus={cpus}")
    if bind is not None and bind.membind:
        found.append(f"--cpuset-mems={bind.membind}")
    return found


def _pairs(rlimits: Mapping[str, object]) -> Iterable[tuple[str, tuple[int, int]]]:
    return rlimits.items()  # type: ignore[return-value]  # stored as pairs
