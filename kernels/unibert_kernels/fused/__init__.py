"""The losses in Triton; imported only where one of their paths runs, since Triton may be missing elsewhere."""
