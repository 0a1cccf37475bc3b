"""Statistics: totals, history in ring files, what is told of them."""
