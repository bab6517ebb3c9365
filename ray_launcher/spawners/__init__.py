"""Spawners for procs that are not plain processes of the node: `container`. Imported when it is used."""
