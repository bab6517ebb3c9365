"""The command `ray-launcher`: an edge of the package, built on its public names alone."""
