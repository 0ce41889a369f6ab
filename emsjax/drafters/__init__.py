"""Drafters: guess the next tokens of every slot; the target verifies them."""
