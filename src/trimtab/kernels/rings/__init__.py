"""Rings of records of collective operations, one ring a rank: decoded into columns, and compared between ranks."""
