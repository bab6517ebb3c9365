"""Why did it fail? The result of a proc brings the last lines that it wrote to stderr."""

from ray_launcher import LaunchOptions, RayProcLauncher

SCRIPT = """
for step in range(1000):
    print("step", step, file=sys.stderr)
print("out of luck", end="", file=sys.stderr)
sys.exit(7)
"""

with RayProcLauncher() as launcher:
    opts = LaunchOptions(program="python3", args=["-c", "import sys" + SCRIPT], tail_lines=3)
    result = launcher.launch("unlucky", opts).exit_port.wait()
    print(f"unlucky {result}; its last lines:")
    for line in result.stderr_tail or ():
        print(f"  | {line}")
