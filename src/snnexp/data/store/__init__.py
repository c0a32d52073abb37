"""The packed event store: written once from what a reader yields, checked at every opening, memory-mapped."""
