"""Simple stand-ins that tests of several packages share."""
