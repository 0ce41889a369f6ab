"""Choosing tokens from logits, on the device: the same for plain decoding, drafts and bonus tokens.

The noise of a request depends only on its seed and on the position of the token. So the prefix
alone decides the token at each position, whichever tokens were drafted. A draft token is accepted
if it equals the token chosen at its position.

For a drafter that copies, q is 1 for its guess and 0 elsewhere. Then this is rejection sampling:
the guess is accepted with probability min(1, p/q) = p, and the token chosen in its place otherwise
has the distribution of the residual, which is p without the guess. A drafter that samples uses the
target's noise instead of reporting its q (arXiv 2408.07978). Speculation then changes no token of a
seed. A rule based on q cannot promise that, because drafts are trimmed to what the batch allows.
"""
