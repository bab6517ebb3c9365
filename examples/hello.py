"""The smallest program: one proc somewhere on the cluster, what it prints, and how it ends."""

from ray_launcher import LaunchOptions, RayProcLauncher

with RayProcLauncher() as launcher:
    hello = launcher.launch("hello", LaunchOptions(program="echo", args=["Hello from a proc!"]))
    result = hello.exit_port.wait()
    for line in launcher.logs("hello"):
        print(line)
    print(f"hello {result}")
