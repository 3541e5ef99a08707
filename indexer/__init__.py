"""Candidate embeddings and the indexes over them, with the recall they deliver."""
