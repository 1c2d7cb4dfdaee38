"""Reports: what a run has done, on one page."""
