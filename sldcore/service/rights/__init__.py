"""What a request may do: keys, policies above a floor, policies of its own, rates."""
