"""A job of many ranks and communicators, played through: who waits for whom, and until when."""
