"""The losses in Triton; imported only where a path of it is taken, since Triton may be missing elsewhere."""
