"""Exit ports are awaitable: wait for many procs at once, give up on one, and end it."""

import asyncio

from ray_launcher import LaunchOptions, LaunchResult, RayProcLauncher


async def tell(launched: LaunchResult) -> None:
    print(f"{launched.proc_id}: {await launched.exit_port}")


async def main() -> None:
    with RayProcLauncher() as launcher:
        procs = launcher.launch_many(
            {f"sleep {seconds}": LaunchOptions(program="sleep", args=[seconds]) for seconds in ("0.2", "0.6", "9999")}
        )
        *short, endless = procs.values()
        await asyncio.gather(*map(tell, short))
        try:
            await asyncio.wait_for(endless.exit_port, timeout=0.1)  # giving up the waiting does not end the proc
        except asyncio.TimeoutError:
            launcher.terminate(endless.proc_id, timeout=5)
        await tell(endless)


asyncio.run(main())
