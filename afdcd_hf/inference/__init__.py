"""From images to label maps, and what is written of them."""
