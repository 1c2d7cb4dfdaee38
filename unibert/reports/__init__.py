"""Pages, plots and tables of what a run has done and of what a corpus holds."""
