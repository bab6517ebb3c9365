"""Launching what other frameworks run; each module imports nothing of the framework itself."""
