"""Where following a biased estimator ends: many small instances at once, and the search for the worst of them."""
