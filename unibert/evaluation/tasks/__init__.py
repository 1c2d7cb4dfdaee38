"""Tasks for which a model is fine-tuned: named entities, inference, question answering."""
