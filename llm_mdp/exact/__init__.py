"""What is exactly true: gradients, every outcome as a world, instances and their files, optima."""
