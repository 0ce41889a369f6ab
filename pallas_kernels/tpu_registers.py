"""What a vector register of a TPU holds; imports no Pallas."""

# Rows of 128 lanes. Fewer rows take as long.
SUBLANES = 8
