"""Export: the same weights in the files of engines that know nothing of mote (llama.cpp, plain transformers)."""
