"""UniBERT: pre-training of compact multilingual encoders."""
