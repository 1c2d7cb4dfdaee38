"""Engine, loop, checkpoints, metrics: everything between a run file and an exported model."""
