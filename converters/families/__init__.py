"""One data file for each model family; `converters.family` finds them."""
