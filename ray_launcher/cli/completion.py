"""`ray-launcher completion`: what a shell needs to complete verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ray_launcher.cli.sessions import verb

_COMPLETION = """Print a script that has bash (4.4 or newer), zsh or fish complete verbs and options.

\b
Examples:
  ray-launcher completion bash >> ~/.bashrc
  ray-launcher completion zsh >> ~/.zshrc
  ray-launcher completion fish > ~/.config/fish/completions/ray-launcher.fish
"""

#: Click's: the script asks the command itself, with this variable set.
_PROGRAM, _VARIABLE = "ray-launcher", "_RAY_LAUNCHER_COMPLETE"


@verb("completion", "Print a script for completion in a shell.", _COMPLETION)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """See `_COMPLETION`."""
    found = get_completion_class(shell)
    if found is None:
        raise click.ClickException(f"this version of click knows no {shell}")
    click.echo(found(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())
