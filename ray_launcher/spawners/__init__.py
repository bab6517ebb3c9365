"""Spawners for procs that are not plain processes of the node: `container`. Nothing here is imported until it is used."""
