"""Choosing tokens from logits, on the device: the same for plain decoding, drafts and bonus tokens.

A request's noise is a function of its seed and of the place of the token, nothing else: the token
at each place is decided by the prefix, whoever guessed what. A draft token is accepted if it is the
token that is chosen there. For a drafter that copies (q is 1 for its guess and 0 elsewhere) that is
rejection sampling: accepted with probability min(1, p/q) = p, and what is chosen instead has the
distribution of the residual, p without the guess. A drafter that samples shares the noise instead
of sending its q (arXiv 2408.07978): speculation then changes no token of a seed, which no rule that
looks at q can give where drafts are trimmed as the batch allows.
"""
