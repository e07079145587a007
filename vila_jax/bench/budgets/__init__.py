"""`vila-jax bench budgets`: what every way of spending fewer visual tokens costs, and what it still sees.

rows      what is measured of a budget, as plain data
cost      tokens, FLOPs, bytes and times of one request, from its programs
exam      right answers on held-out scenes
store     the file in which a bench goes on where it stopped
table     for a terminal, as Markdown, as CSV
chart     accuracy against tokens and against milliseconds, as a PNG
report    the page: which method wins where
"""
