"""`python -m ray_launcher`: the same as the command `ray-launcher`."""

from ray_launcher.cli.main import main

if __name__ == "__main__":
    main()
