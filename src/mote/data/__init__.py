"""Conversations in LLaVA's format, their one prompt renderer, limits on pictures, and the drawn mix of
skills."""
