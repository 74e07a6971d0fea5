"""Feature extractors, distribution metrics and the evaluator that runs them on a model."""
