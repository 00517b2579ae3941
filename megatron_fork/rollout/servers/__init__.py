"""Engines that are servers: what is sent, what comes back and is believed, how weights reach them."""
