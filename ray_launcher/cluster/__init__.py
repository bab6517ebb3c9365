"""The Ray side of the default spawner: the spawner actor, one agent actor per node, and what they agree on."""
