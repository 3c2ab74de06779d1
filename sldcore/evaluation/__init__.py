"""Measuring what a policy does on a benchmark: generate, score, report; each stage resumes where it stopped."""
