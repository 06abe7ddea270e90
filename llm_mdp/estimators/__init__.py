"""What is made of it: credit, values, returns, objectives, and the estimators that are put together from them."""
