"""Diagnosis of a training from its log, with advice."""
