"""The two daemons: trio drivers that carry out what the engine's cores decide."""
