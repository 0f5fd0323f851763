"""Small networks that estimate what a lossy codec lost, in whole numbers: the same bits everywhere."""
