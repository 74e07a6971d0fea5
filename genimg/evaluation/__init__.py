"""Feature extractors, image metrics and the evaluators that run them on a model."""
