"""The verdict: certificates, exact and sampled, the claims and their ledger."""
