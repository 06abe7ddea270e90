"""What was sampled: evidence, policies, the sampler that all randomness comes from, draws that several estimators
share."""
