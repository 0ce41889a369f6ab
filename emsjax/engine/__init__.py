"""The device loop: the steps of decoding, and the compiled programs that share one state."""
