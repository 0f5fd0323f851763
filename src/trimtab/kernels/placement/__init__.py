"""Which rank uses a sample, and which keeps it for the next epoch."""
