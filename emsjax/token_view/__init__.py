"""The token view: an HTML page, in a file or notebook, that shows the origin of each token."""
