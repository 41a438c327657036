"""Answering: a checkpoint is opened and asked about pictures, `mote.load(...)`."""
