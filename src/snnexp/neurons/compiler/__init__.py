"""A compiler for neuron equations: from one step function to the forward and backward step of every fused engine.

symbols.py   the step runs once on symbols instead of tensors and leaves a graph of operations
gradient.py  reverse differentiation of that graph
plan.py      what goes from step to step, what is stored, what backward works out again
source.py    the graph as lines of code, and generated modules on disk
"""
