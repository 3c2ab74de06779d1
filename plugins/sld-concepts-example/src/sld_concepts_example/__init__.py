"""Concept pack ``example-heights``: data only. The manifest names the pack, and nothing here is ever run."""
