"""Language models as policies: log-probabilities, drawing, loading, engines."""
