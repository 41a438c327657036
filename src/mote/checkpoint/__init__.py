"""The checkpoint contract: the directory on disk that is the only interface between stages."""
