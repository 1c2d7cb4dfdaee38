"""A corpus read by a teacher, ahead of the runs that learn from it."""
