"""Evaluation: one stated metric per skill, intervals, a blind baseline; any model behind a Protocol."""
