"""Linear prediction of integers from their neighbours in one, two or three dimensions, in wrapping arithmetic."""
