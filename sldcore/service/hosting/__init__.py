"""What a worker does with its jobs: the engine followed step by step, partial pictures, explanations, reviews."""
