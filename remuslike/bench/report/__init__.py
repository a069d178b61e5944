"""From files of `bench run` to figures, plots, a page, and a verdict on two of them."""
