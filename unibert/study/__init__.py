"""Studies: arms times seeds, compared with significance."""
