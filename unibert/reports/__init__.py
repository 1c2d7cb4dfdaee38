"""Pages, plots and tables about runs and corpora."""
