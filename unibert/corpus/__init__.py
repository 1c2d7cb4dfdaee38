"""Offline corpus building: documents in, tar shards and a manifest out."""
