"""Prediction of the points of a finer lattice from their neighbours on all sides, class by class, with quantisation."""
