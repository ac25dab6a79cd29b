"""How well a map agrees with a reference: pixels, boundaries, objects and probabilities."""
