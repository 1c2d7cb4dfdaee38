"""The demo: all stages from wiki dumps to an evaluated model, on an embedded mini-Wikipedia of 12 languages."""
