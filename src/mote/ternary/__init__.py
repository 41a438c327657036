"""The numbers of the method: weight and activation quantisers, straight-through gradients, packed codecs."""
