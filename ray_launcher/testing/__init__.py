"""For tests: `FakeSpawner`, which starts nothing, and `SpawnerContract`, which any spawner's author can run.

Needs pytest (the extra `test`). `FakeSpawner` runs where every spawner does, in an actor of a real Ray:

    spawner = start_spawner(FakeSpawner, {"a": ExitReport(exit_code=3), "b": ValueError("no image")})
    launcher = ActorProcLauncher(spawner)

The contract suite is a class to inherit from, beside a fixture `launcher`:

    @pytest.fixture(scope="module")
    def launcher():
        return ActorProcLauncher(start_spawner(MySpawner))

    class TestMySpawner(SpawnerContract):
        pass

With `pytest.register_assert_rewrite("ray_launcher.testing")` in a conftest.py its failures show the values compared.
"""

from ray_launcher.testing.contract import Launch, SpawnerContract
from ray_launcher.testing.fake import RUNS, Call, FakeSpawner

__all__ = ["RUNS", "Call", "FakeSpawner", "Launch", "SpawnerContract"]
