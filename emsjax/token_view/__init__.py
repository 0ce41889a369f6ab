"""The token view: a page that shows where each token came from, in a file or in a notebook."""
