"""A yardstick: what one writes with Flower and PEFT alone, without anything of fedasym."""
