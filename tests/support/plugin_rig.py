"""An installed package that offers spawners, as far as Python's metadata know."""

from __future__ import annotations

from pathlib import Path


def offer(site: Path, package: str = "offers", /, **spawners: str) -> None:
    """Make it in this directory, which is to come to the path: spawners by name, as "MODULE:CLASS"."""
    info = site / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    lines = [f"{name} = {where}\n" for name, where in spawners.items()]
    (info / "entry_points.txt").write_text("".join(["[ray_launcher.spawners]\n", *lines]))
