"""Epochs and failover: two pure cores, the ports they need, and the trio drivers that carry them out."""
