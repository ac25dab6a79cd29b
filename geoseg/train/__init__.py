"""Training: labelled scenes in, a model's folder out."""
