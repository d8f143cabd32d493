"""Stages: what turns batches into batches. stage.py has their contract, the rest one stage each."""
