"""What is asked: the tree of responses, the token MDP, hidden rewards."""
