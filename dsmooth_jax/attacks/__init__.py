"""Attacks with patches, on classifiers of every kind here."""
