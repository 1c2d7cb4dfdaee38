"""Download of Wikimedia's dumps, which ``unibert corpus build`` reads."""
