"""Offline corpus building: turns documents into tar shards and a manifest."""
