"""What a pre-trained encoder has learnt: retrieval of translations, and how much language identity it shows."""
