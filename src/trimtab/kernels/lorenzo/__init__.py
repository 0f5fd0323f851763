"""Lorenzo prediction as differences along every axis, a few rows at a time, in wrapping arithmetic."""
