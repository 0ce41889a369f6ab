"""Trains a draft for a target model on text that the target itself writes."""
