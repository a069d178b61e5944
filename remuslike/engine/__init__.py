"""Epochs and failover, pure: two protocol cores, what goes in and comes out, and the ports they need."""
