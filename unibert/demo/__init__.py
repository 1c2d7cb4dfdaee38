"""The demo: the whole route, from wiki dumps to a scored model, on an embedded mini-Wikipedia of 12 languages."""
