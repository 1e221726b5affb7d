"""Test error against stored bytes: hashed nets beside the other families of compression, on one budget of training."""
