"""Ways to choose the integers of a matrix, one file each; the algorithms are those of public libraries.

rtn   round to nearest, ours (`mote.ternary.round_to_nearest`); no data
hqq   half-quadratic quantisation (arXiv 2309.15531), of `neural_compressor`; no data
gptq  second-order error compensation (arXiv 2210.17323), of `neural_compressor`; inputs of each matrix
awq   activation-aware scales (arXiv 2306.00978), of `neural_compressor`; inputs of the down projections
"""
